mod handshake;
mod lifecycle;
mod loss;
mod nat;
mod pair;
mod refusals;
mod restart;
mod robustness;
