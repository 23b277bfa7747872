//! `GET /v1/artifacts/plexd/{version}/{os}/{arch}`: files put under `DIR/artifacts/plexd/VERSION/OS/ARCH`.

use std::io::ErrorKind;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::authorized_as_any;
use crate::reply::{self, Refusal, Reply};
use crate::server::App;

pub(super) fn get(app: &App, headers: &HeaderMap, names: [&str; 3]) -> Result<Reply, Refusal> {
    authorized_as_any(&app.store.lock(), headers)?;
    // The names come from outside and become a path: each has to be one plain component.
    if !names.iter().all(|name| is_plain(name)) {
        return Err(Refusal::not_found());
    }
    let path = names.iter().fold(app.store.dir().join("artifacts/plexd"), |path, name| path.join(name));
    match std::fs::read(&path) {
        Ok(bytes) => Ok(reply::with_type(StatusCode::OK, "application/octet-stream", Bytes::from(bytes))),
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::IsADirectory
            ) =>
        {
            Err(Refusal::not_found())
        }
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "artifact not read");
            Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error"))
        }
    }
}

fn is_plain(name: &str) -> bool {
    !name.starts_with('.') && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_+".contains(&byte))
}
