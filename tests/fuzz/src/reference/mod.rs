//! Second implementations, made to be plain and not fast, with other methods than those of plexd-core and plexd-api.

pub mod envelope;
pub mod http;
pub mod json;
pub mod sse;
pub mod table;
