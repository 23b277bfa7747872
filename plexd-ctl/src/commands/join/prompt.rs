//! Asks for a secret on a terminal that does not show it. The terminal is as it was afterwards, also when the person
//! leaves with Ctrl-C: signals from the keyboard are off meanwhile and Ctrl-C is read like any other key.

use std::io::{self, Write};
use std::os::fd::AsFd;

use nix::sys::termios::{LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr};
use nix::unistd::read;
use zeroize::Zeroizing;

use super::{MAX_TOKEN, TokenError};

/// Most characters that are kept; more than any token has, so that a longer one is refused, not cut.
const MAX_TYPED: usize = MAX_TOKEN + 1;

/// Writes `question` to `screen` and reads the answer from `keyboard`, a terminal, up to Enter.
pub(super) fn ask(
    question: &str,
    keyboard: &impl AsFd,
    screen: &mut impl Write,
) -> Result<Zeroizing<Vec<u8>>, TokenError> {
    let quiet = Quiet::new(keyboard).map_err(TokenError::Input)?;
    write!(screen, "{question}").and_then(|()| screen.flush()).map_err(TokenError::Input)?;
    let answer = type_line(keyboard);
    // The Enter that was not shown. A screen that cannot be written to any more changes nothing.
    let _ = writeln!(screen);
    drop(quiet);
    answer
}

fn type_line(keyboard: &impl AsFd) -> Result<Zeroizing<Vec<u8>>, TokenError> {
    let mut typed = Zeroizing::new(Vec::with_capacity(MAX_TYPED));
    let mut key = Zeroizing::new([0]);
    loop {
        match read(keyboard, &mut *key) {
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(TokenError::Input(error.into())),
            Ok(0) => return Ok(typed),
            Ok(_) => {}
        }
        match key[0] {
            b'\n' | b'\r' => return Ok(typed),
            CTRL_C | CTRL_BACKSLASH => return Err(TokenError::Interrupted),
            CTRL_D if typed.is_empty() => return Err(TokenError::Interrupted),
            BACKSPACE | DELETE => {
                typed.pop();
            }
            CTRL_U => typed.clear(),
            other if typed.len() < MAX_TYPED => typed.push(other),
            _ => {}
        }
    }
}

const CTRL_C: u8 = 0x03;
const CTRL_D: u8 = 0x04;
const BACKSPACE: u8 = 0x08;
const CTRL_U: u8 = 0x15;
const CTRL_BACKSLASH: u8 = 0x1c;
const DELETE: u8 = 0x7f;

/// A terminal that shows nothing, hands out every key at once and raises no signals, until dropped.
struct Quiet<'a, F: AsFd> {
    terminal: &'a F,
    before: Termios,
}

impl<'a, F: AsFd> Quiet<'a, F> {
    fn new(terminal: &'a F) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut quiet = before.clone();
        quiet.local_flags.remove(
            LocalFlags::ECHO
                | LocalFlags::ECHONL
                | LocalFlags::ICANON
                | LocalFlags::ISIG
                | LocalFlags::IEXTEN,
        );
        quiet.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
        quiet.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
        tcsetattr(terminal, SetArg::TCSAFLUSH, &quiet)?;
        Ok(Self { terminal, before })
    }
}

impl<F: AsFd> Drop for Quiet<'_, F> {
    fn drop(&mut self) {
        // The terminal is gone: there is nothing to restore.
        let _ = tcsetattr(self.terminal, SetArg::TCSADRAIN, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::pty::openpty;

    use super::*;

    /// Types `keys` at the prompt once it is quiet; returns the answer and what the terminal showed.
    fn at_the_prompt(keys: impl Into<Vec<u8>>) -> (Result<Zeroizing<Vec<u8>>, TokenError>, Vec<u8>) {
        let pty = openpty(None, None).unwrap();
        let before = tcgetattr(&pty.slave).unwrap();
        let mut person = File::from(pty.master);
        let keys = keys.into();
        // The question comes when the terminal is quiet.
        let (mut asked, mut screen) = io::pipe().unwrap();
        let typing = std::thread::spawn(move || {
            io::Read::read_exact(&mut asked, &mut [0; 7]).unwrap();
            person.write_all(&keys).unwrap();
            person
        });
        let answer = ask("Token: ", &pty.slave, &mut screen);
        let mut person = typing.join().unwrap();
        assert_eq!(tcgetattr(&pty.slave).unwrap().local_flags, before.local_flags, "restored");

        let mut shown = vec![0; 64];
        let mut readable = [PollFd::new(person.as_fd(), PollFlags::POLLIN)];
        let count = if poll(&mut readable, PollTimeout::ZERO).unwrap() == 0 {
            0
        } else {
            io::Read::read(&mut person, &mut shown).unwrap()
        };
        shown.truncate(count);
        (answer, shown)
    }

    #[test]
    fn what_is_typed_is_read_and_not_shown() {
        let (answer, shown) = at_the_prompt(b"wrong\x15plx_x\x7f1\r");
        assert_eq!(answer.unwrap().as_slice(), b"plx_1");
        assert_eq!(shown, b"");
    }

    #[test]
    fn ctrl_c_leaves_and_restores_the_terminal() {
        let (answer, shown) = at_the_prompt(b"plx\x03");
        assert!(matches!(answer, Err(TokenError::Interrupted)));
        assert_eq!(shown, b"");
    }

    #[test]
    fn a_token_that_is_too_long_is_not_cut_to_fit() {
        let mut keys = vec![b'a'; 600];
        keys.push(b'\n');
        let (answer, _) = at_the_prompt(keys);
        assert!(matches!(super::super::check(&answer.unwrap()), Err(TokenError::TooLong)));
    }
}
