//! Debug formats of the messages that carry a secret: their names and sizes, never the value.

use std::fmt;

use crate::admin::v1::JoinRequest;
use crate::node::v1::{Secret, TcpCaller};

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret")
            .field("key", &self.key)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for TcpCaller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpCaller").finish_non_exhaustive()
    }
}

impl fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinRequest").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_formats_do_not_show_secrets() {
        let secret = Secret { key: "db".into(), value: b"hunter2".to_vec().into(), version: 1 };
        let caller = TcpCaller { token: b"hunter2".to_vec().into() };
        let join = JoinRequest { token: "hunter2".into() };
        for text in [format!("{secret:?}"), format!("{caller:?}"), format!("{join:?}")] {
            assert!(!text.contains("hunter2") && !text.contains("104, 117"), "{text}");
        }
    }
}
