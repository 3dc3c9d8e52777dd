//! Makes a guest's console safe to look at: colours pass, everything else that steers a terminal is
//! taken out. Must never be used where bytes go to a file or a pipe.

/// The longest parameters of a colour sequence that we believe in, bytes.
const PARAMETERS_MAX: usize = 32;

/// A filter over a stream of bytes, however it is cut.
#[derive(Debug, Default)]
pub(crate) struct Tame {
    state: State,
    coloured: bool,
}

/// Where in a control sequence (ECMA-48) we are.
#[derive(Debug, Default)]
enum State {
    #[default]
    Text,
    /// After ESC.
    Escape,
    /// After ESC [, with the parameters so far.
    Sequence(Vec<u8>),
    /// After the first byte of U+0080–U+00BF, the first half of which are control characters.
    Latin,
}

impl Tame {
    /// The harmless part of the next bytes.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len());
        for byte in bytes {
            self.byte(*byte, &mut out);
        }
        out
    }

    /// What puts the colours back.
    pub(crate) fn finish(&self) -> &'static [u8] {
        if self.coloured { b"\x1b[0m" } else { b"" }
    }

    fn byte(&mut self, byte: u8, out: &mut Vec<u8>) {
        match (std::mem::take(&mut self.state), byte) {
            (State::Escape, b'[') => self.state = State::Sequence(Vec::new()),
            (State::Sequence(mut parameters), 0x20..=0x3f) if parameters.len() < PARAMETERS_MAX => {
                parameters.push(byte);
                self.state = State::Sequence(parameters);
            }
            (State::Sequence(parameters), b'm')
                if parameters.iter().all(|b| b.is_ascii_digit() || matches!(b, b';' | b':')) =>
            {
                out.extend_from_slice(b"\x1b[");
                out.extend_from_slice(&parameters);
                out.push(b'm');
                self.coloured = true;
            }
            (State::Sequence(_), 0x40..=0x7e) | (State::Latin, 0x80..=0x9f) => {}
            (State::Latin, _) => {
                out.push(0xc2);
                self.text(byte, out);
            }
            (State::Text | State::Escape | State::Sequence(_), _) => self.text(byte, out),
        }
    }

    fn text(&mut self, byte: u8, out: &mut Vec<u8>) {
        match byte {
            0x1b => self.state = State::Escape,
            0xc2 => self.state = State::Latin,
            b'\n' | b'\t' | b'\r' | 0x20..=0x7e | 0x80.. => out.push(byte),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_colours_pass_and_the_rest_is_taken_out() {
        for (given, shown) in [
            ("plain ü ²\t\r\n", "plain ü ²\t\r\n"),
            ("\x1b[0;32m  OK  \x1b[0m", "\x1b[0;32m  OK  \x1b[0m"),
            ("a\x1b[2J\x1b[H\x1b[?25lb", "ab"),
            ("a\x1bcb\x07\x08", "acb"),
            ("\x1b]0;title\x07x", "]0;titlex"),
            ("\u{9b}31m\u{9d}", "31m"),
            ("\x1b[1\x1b[31mx", "\x1b[31mx"),
        ] {
            for cut in 0..=given.len() {
                let mut tame = Tame::default();
                let mut out = tame.feed(&given.as_bytes()[..cut]);
                out.extend(tame.feed(&given.as_bytes()[cut..]));
                assert_eq!(String::from_utf8(out).unwrap(), shown, "{given:?} cut at {cut}");
                assert_eq!(!tame.finish().is_empty(), shown.contains('\x1b'));
            }
        }
    }
}
