//! Tests of the coordinator through its sockets: services in this process ([`grpc`]), the binary as
//! a process of its own ([`process`]).

#[cfg(test)]
mod grpc;
#[cfg(test)]
mod process;
#[cfg(test)]
mod support;
