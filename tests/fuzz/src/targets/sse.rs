//! The event stream: however it is cut, it says what the reference reads; what is kept is bounded.

use plexd_core::control::sse::{Item, MAX_EVENT, Parser};

use crate::mutate::Random;
use crate::reference;

/// Most bytes that are held beyond the limit: the line feed of each line's end, a byte order mark, the name of a field.
const SLACK: usize = 64;

/// The first byte chooses the limit, the second how the rest is cut.
pub fn stream(data: &[u8]) {
    let [limit, seed, stream @ ..] = data else { return };
    let limit = [MAX_EVENT, 16, 64, 256][usize::from(*limit % 4)];
    let expected = reference::sse::items(stream, limit);
    for item in &expected {
        if let Item::Event { data, .. } = item {
            assert!(data.len() <= limit);
        }
    }
    assert_eq!(parse([stream], limit), expected, "in one piece");
    assert_eq!(parse(stream.chunks(1), limit), expected, "byte by byte");
    assert_eq!(parse(pieces(stream, *seed), limit), expected, "in pieces");
}

fn parse<'a>(chunks: impl IntoIterator<Item = &'a [u8]>, limit: usize) -> Vec<Item> {
    let mut parser = Parser::with_limit(limit);
    let mut items = Vec::new();
    for chunk in chunks {
        parser.feed(chunk, &mut |item| items.push(item));
        assert!(parser.buffered() <= 2 * limit + SLACK, "{} bytes are held", parser.buffered());
    }
    items
}

/// Cuts a stream by chance, also into nothing.
pub(super) fn pieces(stream: &[u8], seed: u8) -> Vec<&[u8]> {
    let mut random = Random::new(seed.into());
    let mut rest = stream;
    let mut pieces = Vec::new();
    while !rest.is_empty() {
        // Empty ones, too.
        let (piece, after) = rest.split_at(random.below(12).min(rest.len()));
        pieces.push(piece);
        rest = after;
    }
    pieces
}
