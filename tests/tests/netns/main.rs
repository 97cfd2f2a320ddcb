//! Two gateways of Espada in network namespaces: what they carry, refuse, survive and explain.

mod bypass;
mod certificates;
mod config;
mod doctor;
mod engines;
mod flood;
mod hostile;
mod lifecycle;
mod mobility;
mod path;
mod refusal;
mod rekey;
mod revocation;
mod tunnel;
mod virtual_address;
