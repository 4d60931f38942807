//! The network of a lease in real namespaces, with real nft and the CNI plugins of Debian (rung 3: root, no VM).
//!
//! Every test runs inside a "host" namespace of its own making; the namespaces, links and tables of the real host are never touched.

mod cni;
mod lab;
