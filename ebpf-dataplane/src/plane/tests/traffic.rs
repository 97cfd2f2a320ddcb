//! Traffic through a pair of data planes, checked octet by octet.

use std::net::UdpSocket;
use std::os::fd::AsFd;

use super::*;

/// Ping with a pattern (checked by ping) in several sizes, up to needing fragments. With a
/// deadline, ping ends at the fifth reply; without, a busy machine's late replies count as lost.
pub(super) fn ping(pair: &Pair, v6: bool) {
    for size in [0, 56, 1300, 4000] {
        let output = run(&format!(
            "ip netns exec {} ping -n -q -i 0.01 -c 5 -w 10 -p 5a -s {size} -I {} {}",
            pair.names[0],
            inner(0, v6),
            inner(1, v6)
        ));
        let received = output
            .split(", ")
            .find_map(|part| part.strip_suffix(" received"));
        let received: u32 = received.unwrap().parse().unwrap();
        assert!(received >= 5, "size {size}: {output}");
        assert!(!output.contains("wrong data"), "{output}");
    }
}

/// `octets` each way over one TCP connection, each octet checked.
pub(super) fn tcp(pair: &Pair, v6: bool, octets: usize) {
    let server = (inner(1, v6), 7777);
    let listener = pair.inside(1, || TcpListener::bind(server).unwrap());
    let client = pair.inside(0, || TcpStream::connect(server).unwrap());
    let ends = [client, listener.accept().unwrap().0];
    exchange(ends, octets, Duration::from_secs(10));
}

/// `octets` from each end of a connection to the other, each octet checked; none waits longer than
/// `patience` for more.
pub(crate) fn exchange(ends: [TcpStream; 2], octets: usize, patience: Duration) {
    let pattern = |n: usize| (n.wrapping_mul(2_654_435_761) >> 13) as u8;
    let transfer = move |mut stream: TcpStream| {
        stream.set_read_timeout(Some(patience)).unwrap();
        let mut writer = stream.try_clone().unwrap();
        let sender = std::thread::spawn(move || {
            let data: Vec<u8> = (0..octets).map(pattern).collect();
            writer.write_all(&data).unwrap();
        });
        let mut data = vec![0; octets];
        stream.read_exact(&mut data).unwrap();
        sender.join().unwrap();
        assert!(
            data.iter()
                .enumerate()
                .all(|(n, octet)| *octet == pattern(n))
        );
    };
    std::thread::scope(|scope| {
        ends.map(|end| scope.spawn(move || transfer(end)))
            .map(|end| end.join().unwrap())
    });
}

/// Trains of datagrams of one length, each train with a shorter one at its end, handed to the host's stack in
/// one piece and received one by one.
pub(super) fn datagrams(pair: &Pair, v6: bool) {
    const TRAIN: usize = 40 * LENGTH + 100;
    const LENGTH: usize = 1000;
    let receiver = pair.inside(1, || UdpSocket::bind((inner(1, v6), 7778)).unwrap());
    receiver
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let sender = pair.inside(0, || UdpSocket::bind((inner(0, v6), 0)).unwrap());
    let (level, option) = (libc::SOL_UDP, libc::UDP_SEGMENT);
    syscall::set_option(sender.as_fd(), level, option, LENGTH as i32).unwrap();
    for train in 0..4u8 {
        let sent: Vec<u8> = (0..TRAIN).map(|n| (n / 7) as u8 ^ train).collect();
        sender.send_to(&sent, (inner(1, v6), 7778)).unwrap();
        for expected in sent.chunks(LENGTH) {
            let mut datagram = [0; 2 * LENGTH];
            let length = receiver.recv(&mut datagram).unwrap();
            assert_eq!(&datagram[..length], expected);
        }
    }
}
