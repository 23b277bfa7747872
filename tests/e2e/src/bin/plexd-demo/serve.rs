//! The tiny web server of the demo and the tests: one text for every request. It is what speaks over the mesh, nothing of
//! plexd's.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

/// Time between two lines of `/stream`.
const BEAT: Duration = Duration::from_millis(20);

/// Serves `text` at `address` until the process is ended.
pub(crate) fn serve(address: &str, text: &str) -> io::Result<()> {
    for connection in TcpListener::bind(address)?.incoming() {
        let (connection, text) = (connection?, text.to_owned());
        // A client that goes away is no concern of the server's.
        thread::spawn(move || answer(&connection, &text));
    }
    Ok(())
}

fn answer(mut connection: &TcpStream, text: &str) -> io::Result<()> {
    let mut lines = BufReader::new(connection).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n";
    if request.starts_with("GET /stream ") {
        write!(connection, "{head}\r\n")?;
        loop {
            writeln!(connection, "{text}")?;
            thread::sleep(BEAT);
        }
    }
    write!(connection, "{head}Content-Length: {}\r\n\r\n{text}\n", text.len() + 1)
}
