//! The exec image: every byte that execve needs, laid out before the clone.

use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::ptr;

use libc::c_char;

/// A string for the kernel has a NUL byte in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NulByte;

/// Program candidates, arguments, environment and working directory as the kernel takes them: one run of bytes and the pointers into it.
///
/// Not `Clone`, and the bytes are never touched again after [`ExecImage::new`]: the pointers stay good when the image moves.
#[derive(Debug)]
pub struct ExecImage {
    bytes: Vec<u8>,
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    candidates: Vec<usize>,
    cwd: Option<usize>,
}

// SAFETY: the pointers lead into `bytes`, which this image alone owns and nobody writes any more; no thread is special to it.
unsafe impl Send for ExecImage {}

impl ExecImage {
    /// Lays out an image. A `program` without a slash becomes one candidate for each directory of `path`, as execvp(3) has it (an empty
    /// directory is the current one); `argv[0]` is the program as given.
    ///
    /// # Errors
    /// [`NulByte`] if any of the strings has one.
    pub fn new<'a>(
        program: &'a OsStr,
        args: impl Iterator<Item = &'a OsStr> + Clone,
        env: impl Iterator<Item = (&'a OsStr, &'a OsStr)> + Clone,
        path: &OsStr,
        cwd: Option<&OsStr>,
    ) -> Result<Self, NulByte> {
        let is_path = program.as_bytes().contains(&b'/');
        let directories = path.as_bytes().split(|&byte| byte == b':');
        // Each string's bytes, and what stands between and behind.
        let mut bytes = program.len() + 1 + args.clone().map(|arg| arg.len() + 1).sum::<usize>() + cwd.map_or(0, |cwd| cwd.len() + 1);
        bytes += env.clone().map(|(key, value)| key.len() + value.len() + 2).sum::<usize>();
        bytes += if is_path { 0 } else { directories.clone().map(|directory| directory.len().max(1) + program.len() + 2).sum() };
        let mut strings = Strings { bytes: Vec::with_capacity(bytes), nul: false };
        let mut argv = vec![strings.push(&[program.as_bytes()])];
        argv.extend(args.map(|arg| strings.push(&[arg.as_bytes()])));
        let envp: Vec<usize> = env.map(|(key, value)| strings.push(&[key.as_bytes(), b"=", value.as_bytes()])).collect();
        let cwd = cwd.map(|cwd| strings.push(&[cwd.as_bytes()]));
        let candidates = if is_path {
            vec![argv[0]]
        } else {
            directories
                .map(|directory| match directory {
                    b"" => strings.push(&[b"./", program.as_bytes()]),
                    directory => strings.push(&[directory, b"/", program.as_bytes()]),
                })
                .collect()
        };
        if strings.nul {
            return Err(NulByte);
        }
        let bytes = strings.bytes;
        let (argv, envp) = (pointers(&bytes, &argv), pointers(&bytes, &envp));
        Ok(Self { bytes, argv, envp, candidates, cwd })
    }

    /// The program as it was given.
    pub fn program(&self) -> &OsStr {
        OsStr::from_bytes(self.string(0).to_bytes())
    }

    /// The working directory, if one was given.
    pub fn directory(&self) -> Option<&OsStr> {
        self.cwd().map(|cwd| OsStr::from_bytes(cwd.to_bytes()))
    }

    /// What the arguments and the environment take on the stack of the program, in bytes: strings and the pointers to them.
    pub fn stack_bytes(&self) -> usize {
        self.bytes.len() + (self.argv.len() + self.envp.len()) * size_of::<*const c_char>()
    }

    /// The path of candidate `index`; what a failure of the exec step names.
    pub fn candidate(&self, index: u32) -> Option<&OsStr> {
        let offset = *self.candidates.get(index as usize)?;
        Some(OsStr::from_bytes(self.string(offset).to_bytes()))
    }

    pub(crate) fn candidates(&self) -> impl Iterator<Item = &CStr> {
        self.candidates.iter().map(|&offset| self.string(offset))
    }

    pub(crate) fn cwd(&self) -> Option<&CStr> {
        self.cwd.map(|offset| self.string(offset))
    }

    pub(crate) fn argv(&self) -> *const *const c_char {
        self.argv.as_ptr()
    }

    pub(crate) fn envp(&self) -> *const *const c_char {
        self.envp.as_ptr()
    }

    fn string(&self, offset: usize) -> &CStr {
        // Never the default: every offset came from `Strings::push`, which ends its string with the only NUL in it. No scan can fail or panic.
        self.bytes.get(offset..).and_then(|bytes| CStr::from_bytes_until_nul(bytes).ok()).unwrap_or_default()
    }
}

/// The pointers to the strings at `offsets`, ended by a null pointer.
fn pointers(bytes: &[u8], offsets: &[usize]) -> Vec<*const c_char> {
    let start: *const c_char = bytes.as_ptr().cast();
    offsets.iter().map(|&offset| start.wrapping_add(offset)).chain([ptr::null()]).collect()
}

struct Strings {
    bytes: Vec<u8>,
    nul: bool,
}

impl Strings {
    /// Appends one NUL-terminated string made of `parts` and returns its offset.
    fn push(&mut self, parts: &[&[u8]]) -> usize {
        let offset = self.bytes.len();
        for part in parts {
            self.nul |= part.contains(&0);
            self.bytes.extend_from_slice(part);
        }
        self.bytes.push(0);
        offset
    }
}

#[cfg(test)]
mod tests {
    use std::iter;

    use super::*;

    fn candidates(program: &str, path: &str) -> Vec<String> {
        let image = ExecImage::new(OsStr::new(program), iter::empty(), iter::empty(), OsStr::new(path), None).unwrap();
        image.candidates().map(|path| path.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_name_is_looked_up_in_every_directory_of_path() {
        assert_eq!(candidates("ls", "/bin:/usr/bin"), ["/bin/ls", "/usr/bin/ls"]);
        assert_eq!(candidates("ls", "/bin::/x"), ["/bin/ls", "./ls", "/x/ls"]);
        assert_eq!(candidates("ls", ""), ["./ls"]);
    }

    #[test]
    fn a_name_with_a_slash_is_a_path() {
        assert_eq!(candidates("./ls", "/bin"), ["./ls"]);
        assert_eq!(candidates("/bin/ls", "/usr/bin"), ["/bin/ls"]);
    }

    #[test]
    fn a_nul_byte_is_refused_wherever_it_stands() {
        let nul = OsStr::new("a\0b");
        let ok = OsStr::new("ab");
        let path = OsStr::new("/bin");
        let refused = |program, arg, value, path, cwd| {
            ExecImage::new(program, iter::once(arg), iter::once((ok, value)), path, Some(cwd)).unwrap_err() == NulByte
        };
        assert!(refused(nul, ok, ok, path, ok));
        assert!(refused(ok, nul, ok, path, ok));
        assert!(refused(ok, ok, nul, path, ok));
        assert!(refused(ok, ok, ok, nul, ok));
        assert!(refused(ok, ok, ok, path, nul));
    }

    #[test]
    fn the_bytes_are_counted_before_they_are_written() {
        for (program, path) in [("ls", "/bin::/usr/bin"), ("/bin/ls", "/bin"), ("ls", "")] {
            let (program, path) = (OsStr::new(program), OsStr::new(path));
            let env = [(OsStr::new("A"), OsStr::new("1")), (OsStr::new("B"), OsStr::new(""))];
            let image = ExecImage::new(program, [OsStr::new("-l"), OsStr::new("")].into_iter(), env.into_iter(), path, Some(path)).unwrap();
            assert_eq!(image.bytes.capacity(), image.bytes.len(), "{image:?}");
        }
    }
}
