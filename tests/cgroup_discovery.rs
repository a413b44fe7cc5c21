//! Promise: where jobs get their cgroups is found out, or it is said why they get none, and what to do about it; of what a worker makes there nothing
//! is left.
//!
//! What a process sees of the hierarchy cannot be changed from inside a test: each scene is set up by a shell, in namespaces where need be, which then
//! becomes the process that is tested. Mounts are changed in the machine only: `.ci/machine`.

mod common;

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{self, Stdio};

use common::{Host, cgroup2_mount, directories, finish, is_isolated, isolated_behind, not_root, output_of, wait_until};
use iron_exec::{
    BuildError, Builder, CgroupBase, Command, IoDevice, IoMax, Limits, RungReason, Signal, StartFailure, Status, Step, Worker,
};
use rustix::fs::XattrFlags;

/// The environment variable that tells a scene's process where its cgroup is.
const PLACE: &str = "IRON_EXEC_TEST_PLACE";

/// A user without rights of its own.
const NOBODY: u32 = 54_321;

/// A process in surroundings of its own.
#[derive(Default)]
struct Scene<'a> {
    /// The test's own path, as libtest knows it.
    test: &'a str,
    /// The cgroup that the process stands in: the place itself (`.`) or one below it, which is made. Without it the test's own.
    stands_in: Option<&'a str>,
    /// Flags of unshare(1), which acts once the process stands there.
    unshare: &'a [&'a str],
    /// What a shell does then. `$place` is the place: a cgroup of the test's own, which goes with it.
    setup: &'a str,
    /// Whether the process is NOBODY's.
    is_nobodys: bool,
    /// The cgroups that are to be left in the place.
    left: &'a [&'a str],
}

impl Scene<'_> {
    /// Runs `body` there, with the path of the place.
    fn play(&self, body: impl FnOnce(&Path, &Host)) {
        if is_isolated() {
            return body(Path::new(&std::env::var_os(PLACE).expect("the place")), &Host::new());
        }
        if not_root() {
            return;
        }
        let Some(mount) = cgroup2_mount() else {
            assert!(common::cannot_run("it needs a cgroup2 mount"));
            return;
        };
        // Marked tests run one at a time, and have the machine, or the host, to themselves.
        let is_marked = std::env::args().any(|argument| argument == "--ignored");
        if is_marked {
            for controller in ["cpu", "cpuset", "io", "memory", "pids"] {
                fs::write(mount.join("cgroup.subtree_control"), format!("+{controller}")).unwrap();
            }
        }
        let place = Place(mount.join(format!("iron-exec-test-{}-{}", self.test, process::id())));
        fs::create_dir(&place.0).unwrap();
        let enter = self.stands_in.map_or(String::new(), |below| format!("mkdir -p $place/{below}; echo $$ >$place/{below}/cgroup.procs"));
        let mut shell = process::Command::new("sh");
        shell.env(PLACE, &place.0);
        let script = |text: &str| format!("place=${PLACE}\n{text}\nexec \"$@\"");
        shell.args(["-ec", &script(&enter), "sh"]);
        if !self.unshare.is_empty() {
            shell.arg("unshare").args(self.unshare);
        }
        shell.args(["sh", "-ec", &script(self.setup), "sh"]);
        let program = std::env::current_exe().unwrap();
        let directory = tempfile::tempdir().unwrap();
        if self.is_nobodys {
            // Such a user may not get to where the test lies.
            let copy = directory.path().join("test");
            fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
            fs::copy(program, &copy).unwrap();
            let user = NOBODY.to_string();
            shell.args(["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups"]).arg(copy);
        } else {
            shell.arg(program);
        }
        isolated_behind(&mut shell, self.test, || unreachable!("it runs in the other process"));
        let mut left = directories(&place.0);
        left.sort();
        assert_eq!(left, self.left, "what is left in the place");
        let default = mount.join("iron-exec");
        assert!(!is_marked || !default.exists(), "{} is left", default.display());
    }
}

/// A cgroup of a test's own, in the test's own process.
struct Place(PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        wait_until("the place is empty", || {
            remove_tree(&self.0);
            !self.0.exists()
        });
    }
}

fn remove_tree(path: &Path) {
    for name in directories(path) {
        remove_tree(&path.join(name));
    }
    let _ = fs::remove_dir(path);
}

/// Whether the hierarchy was mounted so that no process gets out of its cgroup namespace: then the test cannot be run.
fn keeps_processes_in_their_namespaces() -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.contains("nsdelegate") && common::cannot_run("it needs a cgroup2 mounted without the option nsdelegate")
}

/// A process of somebody else's, which goes with the test.
struct Other(process::Child);

impl Other {
    /// In our own cgroup.
    fn new() -> Self {
        Self(process::Command::new("sleep").arg("1000").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn builder(host: &Host) -> Builder {
    Worker::builder().log_dir(host.log_dir.path())
}

fn builder_at(host: &Host, base: impl Into<PathBuf>) -> Builder {
    builder(host).cgroup_base(CgroupBase::Path(base.into()))
}

/// The base that the worker has; a job of it that runs shows that it is one.
fn base_of(worker: &mut Worker) -> PathBuf {
    let base =
        worker.capabilities().cgroup.clone().unwrap_or_else(|| panic!("no cgroups: {:?}", worker.capabilities().cgroup_missing)).base;
    let job = worker.start(Command::shell("sed -n 's/^0:://p' /proc/self/cgroup").name("probe")).unwrap();
    let status = finish(worker, job);
    let output = String::from_utf8(output_of(&status)).unwrap();
    assert!(status.success() && !status.cgroup_left, "{status:?}: {output}");
    let name = format!("probe_{job}");
    assert!(output.trim_end().ends_with(&name), "{output}");
    assert!(!base.join(name).exists());
    base
}

/// Why the worker has no cgroups. Its jobs run without, and a limit is refused for this reason.
fn missing(worker: &mut Worker) -> String {
    assert!(worker.capabilities().cgroup.is_none() && worker.capabilities().limits.is_empty());
    let reason = worker.capabilities().cgroup_missing.clone().expect("a reason");
    let status = run(worker, Command::new("true"));
    assert!(status.success() && status.cgroup.is_none(), "{status:?}");
    let refused = refused(worker, Limits::new().pids_max(10));
    assert!(refused.advice().unwrap().contains(&reason), "{refused}");
    reason
}

fn run(worker: &mut Worker, command: Command) -> Status {
    let job = worker.start(command).unwrap();
    finish(worker, job)
}

/// Why a job with these limits is refused.
fn refused(worker: &mut Worker, limits: Limits) -> StartFailure {
    let error = worker.start(Command::new("true").limits(limits)).expect_err("the limit should be refused");
    let failure = error.failure().expect("a step failed").clone();
    assert_eq!(failure.step(), Step::Limit, "{failure}");
    failure
}

/// A limit acts on the job that has it, and on no other.
fn assert_limits_act(worker: &mut Worker) {
    let forks = || Command::shell("(exit 7); exit $?");
    assert_eq!(run(worker, forks()).exit_code, 7);
    let status = run(worker, forks().limits(Limits::new().pids_max(1)));
    assert!(status.exit_code != 7, "{status:?}");
}

fn assert_contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

/// Our own cgroup, below the mount.
fn own(mount: &Path) -> PathBuf {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
    mount.join(own)
}

fn mark(cgroup: &Path, name: &str) {
    rustix::fs::setxattr(cgroup, name, b"1", XattrFlags::empty()).unwrap();
}

fn base_error(builder: Builder, expected: &Path) -> String {
    match builder.build() {
        Err(BuildError::CgroupBase { path, source }) => {
            assert_eq!(path, expected);
            source.to_string()
        }
        Err(error) => panic!("{error}: {:?}", error.source()),
        Ok(_) => panic!("{} was taken for a base", expected.display()),
    }
}

// A base by path.

#[test]
fn a_base_by_path_is_made_when_it_is_not_there_and_goes_with_the_last_worker() {
    Scene { test: "a_base_by_path_is_made_when_it_is_not_there_and_goes_with_the_last_worker", ..Scene::default() }.play(|place, host| {
        let base = place.join("base");
        let mut first = builder_at(host, &base).build().unwrap();
        let mut second = builder_at(host, &base).build().unwrap();
        assert_eq!((base_of(&mut first), base_of(&mut second)), (base.clone(), base.clone()));
        assert_eq!(directories(&base).len(), 2, "a lock of each");
        drop(first);
        assert_eq!(directories(&base).len(), 1);
        drop(second);
        assert!(!base.exists());
    });
}

#[test]
fn a_base_by_path_that_is_there_is_used_and_stays() {
    let test = "a_base_by_path_that_is_there_is_used_and_stays";
    Scene { test, setup: "mkdir $place/base", left: &["base"], ..Scene::default() }.play(|place, host| {
        let base = place.join("base");
        let mut worker = builder_at(host, &base).build().unwrap();
        assert_eq!(base_of(&mut worker), base);
        drop(worker);
        assert_eq!(directories(&base), Vec::<String>::new());
    });
}

#[test]
fn a_relative_base_stays_where_it_was_when_the_host_changes_its_working_directory() {
    let test = "a_relative_base_stays_where_it_was_when_the_host_changes_its_working_directory";
    Scene { test, setup: "cd $place", ..Scene::default() }.play(|place, host| {
        let mut worker = builder_at(host, "base").build().unwrap();
        std::env::set_current_dir("/").unwrap();
        assert_eq!(base_of(&mut worker), place.join("base"));
    });
}

#[test]
fn a_base_that_is_not_on_cgroup2_is_refused_and_nothing_is_made() {
    let host = Host::new();
    let directory = tempfile::tempdir().unwrap();
    for base in [directory.path().to_owned(), directory.path().join("base")] {
        assert_contains(&base_error(builder_at(&host, &base), &base), &["not on a cgroup2 file system"]);
    }
    assert_eq!(directories(directory.path()), Vec::<String>::new());
    assert!(directory.path().exists());
}

#[test]
fn the_root_of_the_hierarchy_cannot_be_the_base() {
    Scene { test: "the_root_of_the_hierarchy_cannot_be_the_base", ..Scene::default() }.play(|place, host| {
        let root = place.parent().unwrap();
        assert_contains(&base_error(builder_at(host, root), root), &["the root of a hierarchy cannot be the base"]);
    });
}

#[test]
fn a_base_that_cannot_be_made_is_named_with_the_cause() {
    let test = "a_base_that_cannot_be_made_is_named_with_the_cause";
    Scene { test, setup: "mkdir $place/there", is_nobodys: true, left: &["there"], ..Scene::default() }.play(|place, host| {
        let error = |base: &str| base_error(builder_at(host, place.join(base)), &place.join(base));
        assert_contains(&error("base"), &["Permission denied"]);
        assert_contains(&error("there"), &["Permission denied"]);
        assert_contains(&error("not/there"), &["No such file"]);
    });
}

// The default.

#[test]
fn root_gets_a_base_below_the_root_of_the_hierarchy() {
    let test = "root_gets_a_base_below_the_root_of_the_hierarchy";
    Scene { test, stands_in: Some("host"), left: &["host"], ..Scene::default() }.play(|place, host| {
        let mut worker = builder(host).build().unwrap();
        let base = base_of(&mut worker);
        assert_eq!(base, place.with_file_name("iron-exec"));
    });
}

#[test]
fn our_own_cgroup_is_the_base_if_it_is_marked_as_delegated() {
    let test = "our_own_cgroup_is_the_base_if_it_is_marked_as_delegated";
    Scene { test, stands_in: Some("."), ..Scene::default() }.play(|place, host| {
        for name in ["user.delegate", "trusted.delegate"] {
            rustix::fs::setxattr(place, name, b"0", XattrFlags::empty()).unwrap();
            assert_eq!(base_of(&mut builder(host).build().unwrap()), place.with_file_name("iron-exec"), "{name} of 0");
            mark(place, name);
            assert_eq!(base_of(&mut builder(host).build().unwrap()), place, "{name}");
            assert_eq!(directories(place), Vec::<String>::new());
            rustix::fs::removexattr(place, name).unwrap();
        }
    });
}

#[test]
fn taking_over_our_own_cgroup_moves_us_to_its_supervisor_and_a_second_worker_finds_the_same_base() {
    let test = "taking_over_our_own_cgroup_moves_us_to_its_supervisor_and_a_second_worker_finds_the_same_base";
    Scene { test, stands_in: Some("."), left: &["supervisor"], ..Scene::default() }.play(|place, host| {
        let supervisor = place.join("supervisor");
        let mut first = builder(host).take_over_cgroup(true).build().unwrap();
        assert_eq!((base_of(&mut first), own(place.parent().unwrap())), (place.to_owned(), supervisor.clone()));
        let mut second = builder(host).take_over_cgroup(true).build().unwrap();
        assert_eq!((base_of(&mut second), own(place.parent().unwrap())), (place.to_owned(), supervisor.clone()));
        drop((first, second));
        assert_eq!(directories(place), ["supervisor"]);
        // Also one that does not ask for it, once the cgroup is marked.
        mark(place, "user.delegate");
        assert_eq!(base_of(&mut builder(host).build().unwrap()), place);
        assert_eq!(fs::read_to_string(place.join("cgroup.procs")).unwrap(), "");
        assert!(supervisor.exists() && place.exists(), "a base that no worker has made stays");
    });
}

#[test]
fn nothing_is_taken_over_where_the_base_is_not_our_own_cgroup() {
    let test = "nothing_is_taken_over_where_the_base_is_not_our_own_cgroup";
    Scene { test, stands_in: Some("host"), left: &["host"], ..Scene::default() }.play(|place, host| {
        let own_before = place.join("host");
        for base in [place.join("base"), own_before.join("base")] {
            let mut worker = builder_at(host, &base).take_over_cgroup(true).build().unwrap();
            assert_eq!(base_of(&mut worker), base);
            assert!(!base.join("supervisor").exists());
            assert_eq!(own(place.parent().unwrap()), own_before);
        }
        assert_eq!(directories(&own_before), Vec::<String>::new());
    });
}

#[test]
fn our_own_cgroup_by_path_is_taken_over_too() {
    let test = "our_own_cgroup_by_path_is_taken_over_too";
    Scene { test, stands_in: Some("."), left: &["supervisor"], ..Scene::default() }.play(|place, host| {
        let mut worker = builder_at(host, place).take_over_cgroup(true).build().unwrap();
        assert_eq!(base_of(&mut worker), place);
        assert_eq!(own(place.parent().unwrap()), place.join("supervisor"));
    });
}

#[test]
fn switched_off_means_none() {
    let host = Host::new();
    let mut worker = builder(&host).cgroup_base(CgroupBase::Off).build().unwrap();
    assert_contains(&missing(&mut worker), &["switched off"]);
}

// A user without rights.

/// What a host does to delegate a subtree, with its own words: cgroups(7), "Delegating a hierarchy".
const DELEGATE: &str = "chown 54321:54321 $place $place/cgroup.procs $place/cgroup.subtree_control";

#[test]
fn a_user_without_a_delegated_cgroup_runs_jobs_without_and_is_told_why() {
    let test = "a_user_without_a_delegated_cgroup_runs_jobs_without_and_is_told_why";
    Scene { test, stands_in: Some("."), is_nobodys: true, ..Scene::default() }.play(|place, host| {
        for take_over in [false, true] {
            let mut worker = builder(host).take_over_cgroup(take_over).build().unwrap();
            assert_contains(&missing(&mut worker), &["not delegated", "Delegate=yes"]);
        }
        assert_eq!(own(place.parent().unwrap()), place);
    });
}

#[test]
fn a_user_with_a_delegated_cgroup_runs_jobs_in_it() {
    let test = "a_user_with_a_delegated_cgroup_runs_jobs_in_it";
    Scene { test, stands_in: Some("."), setup: DELEGATE, is_nobodys: true, ..Scene::default() }.play(|place, host| {
        let mut worker = builder(host).build().unwrap();
        assert_eq!(base_of(&mut worker), place);
        let status = run(&mut worker, Command::shell("sleep 1000 & exit 3"));
        assert_eq!((status.exit_code, status.cgroup_left), (3, false), "what it leaves behind can be killed");
    });
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn a_user_with_a_delegated_cgroup_limits_its_jobs() {
    let test = "a_user_with_a_delegated_cgroup_limits_its_jobs";
    Scene { test, stands_in: Some("."), setup: DELEGATE, is_nobodys: true, left: &["supervisor"], ..Scene::default() }.play(
        |place, host| {
            let mut worker = builder(host).take_over_cgroup(true).build().unwrap();
            assert_eq!(base_of(&mut worker), place);
            assert_limits_act(&mut worker);
        },
    );
}

// What is mounted.

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn on_a_pure_version_2_host_limits_act_below_the_default_base() {
    let test = "on_a_pure_version_2_host_limits_act_below_the_default_base";
    Scene { test, stands_in: Some("."), ..Scene::default() }.play(|place, host| {
        let mut worker = builder(host).build().unwrap();
        assert_eq!(base_of(&mut worker), place.with_file_name("iron-exec"));
        assert_limits_act(&mut worker);
    });
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn on_a_hybrid_host_the_base_is_below_the_version_2_mount() {
    let test = "on_a_hybrid_host_the_base_is_below_the_version_2_mount";
    for (covered, setup) in [
        (false, "umount -l /sys/fs/cgroup; mount -t tmpfs none /sys/fs/cgroup"),
        // The old mount is still in the list, and cannot be reached.
        (true, "mount -t tmpfs none /sys/fs/cgroup"),
    ] {
        println!("covered: {covered}");
        let setup = format!("{setup}; mkdir /sys/fs/cgroup/unified; mount -t cgroup2 none /sys/fs/cgroup/unified");
        Scene { test, unshare: &["--mount"], setup: &setup, ..Scene::default() }.play(|_, host| {
            let mut worker = builder(host).build().unwrap();
            assert_eq!(base_of(&mut worker), Path::new("/sys/fs/cgroup/unified/iron-exec"));
            assert_limits_act(&mut worker);
        });
    }
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn on_a_version_1_host_jobs_run_without_cgroups_and_it_is_said_what_to_mount() {
    let test = "on_a_version_1_host_jobs_run_without_cgroups_and_it_is_said_what_to_mount";
    let setup = "umount -l /sys/fs/cgroup; mount -t tmpfs none /sys/fs/cgroup; mkdir /sys/fs/cgroup/named
        mount -t cgroup -o none,name=iron-exec-test none /sys/fs/cgroup/named";
    Scene { test, unshare: &["--mount"], setup, ..Scene::default() }.play(|_, host| {
        assert_contains(&fs::read_to_string("/proc/self/mounts").unwrap(), &["/sys/fs/cgroup/named cgroup "]);
        assert_contains(&missing(&mut builder(host).build().unwrap()), &["no cgroup2 hierarchy is mounted", "mount -t cgroup2"]);
    });
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn without_any_cgroup_file_system_jobs_run_without_cgroups() {
    let test = "without_any_cgroup_file_system_jobs_run_without_cgroups";
    Scene { test, unshare: &["--mount"], setup: "umount -l /sys/fs/cgroup", ..Scene::default() }.play(|_, host| {
        for take_over in [false, true] {
            let mut worker = builder(host).take_over_cgroup(take_over).build().unwrap();
            assert_contains(&missing(&mut worker), &["no cgroup2 hierarchy is mounted"]);
        }
    });
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn a_read_only_hierarchy_is_said_to_be_read_only() {
    let test = "a_read_only_hierarchy_is_said_to_be_read_only";
    for setup in [
        "umount -l /sys/fs/cgroup; mount -t cgroup2 -o ro none /sys/fs/cgroup",
        "mount -o remount,bind,ro /sys/fs/cgroup",
        // The mount below it is not read-only, and cannot be reached.
        "mount --bind /sys/fs/cgroup /sys/fs/cgroup; mount -o remount,bind,ro /sys/fs/cgroup",
    ] {
        println!("{setup}");
        Scene { test, stands_in: Some("."), unshare: &["--mount"], setup, ..Scene::default() }.play(|place, host| {
            for take_over in [false, true] {
                let mut worker = builder(host).take_over_cgroup(take_over).build().unwrap();
                assert_contains(&missing(&mut worker), &["/sys/fs/cgroup is read-only", "mounted read-write"]);
            }
            assert_contains(&base_error(builder_at(host, place.join("base")), &place.join("base")), &["Read-only file system"]);
        });
    }
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn a_read_only_mount_does_not_stand_in_the_way_of_a_writable_one() {
    let test = "a_read_only_mount_does_not_stand_in_the_way_of_a_writable_one";
    let setup = "mount -o remount,bind,ro /sys/fs/cgroup; mount -t tmpfs none /mnt; mkdir /mnt/rw; mount -t cgroup2 none /mnt/rw";
    Scene { test, unshare: &["--mount"], setup, ..Scene::default() }.play(|_, host| {
        let mut worker = builder(host).build().unwrap();
        assert_eq!(base_of(&mut worker), Path::new("/mnt/rw/iron-exec"));
        assert_limits_act(&mut worker);
    });
}

// Namespaces and parts of the hierarchy.

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn in_a_container_limits_are_refused_with_advice_until_its_cgroup_is_taken_over() {
    let test = "in_a_container_limits_are_refused_with_advice_until_its_cgroup_is_taken_over";
    let setup = "umount -l /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup";
    let unshare = &["--mount", "--cgroup"];
    Scene { test, stands_in: Some("."), unshare, setup, left: &["supervisor"], ..Scene::default() }.play(|_, host| {
        let root = Path::new("/sys/fs/cgroup");
        assert_eq!(own(root), Path::new("/sys/fs/cgroup/"));
        for enables in [false, true] {
            let mut worker = builder(host).enable_controllers(enables).build().unwrap();
            assert_eq!(base_of(&mut worker), root.join("iron-exec"));
            let refused = refused(&mut worker, Limits::new().pids_max(5));
            assert_contains(&refused.to_string(), &["/sys/fs/cgroup holds processes of its own", "Builder::take_over_cgroup"]);
            if enables {
                assert_eq!(refused.path(), Some(Path::new("/sys/fs/cgroup/cgroup.subtree_control")));
            }
        }
        let mut worker = builder(host).take_over_cgroup(true).build().unwrap();
        assert_eq!((base_of(&mut worker), own(root)), (root.to_owned(), root.join("supervisor")));
        assert_limits_act(&mut worker);
        // Once its processes are out of the way the default base can have limits, too.
        drop(worker);
        let mut worker = builder(host).enable_controllers(true).build().unwrap();
        assert_eq!(base_of(&mut worker), root.join("iron-exec"));
        assert_limits_act(&mut worker);
    });
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn in_a_cgroup_namespace_with_the_mount_of_outside_jobs_run_below_that() {
    let test = "in_a_cgroup_namespace_with_the_mount_of_outside_jobs_run_below_that";
    if keeps_processes_in_their_namespaces() {
        return;
    }
    Scene { test, stands_in: Some("host"), unshare: &["--cgroup"], left: &["host"], ..Scene::default() }.play(|place, host| {
        assert_contains(&fs::read_to_string("/proc/self/mountinfo").unwrap(), &[" /../.. "]);
        for take_over in [false, true] {
            let mut worker = builder(host).take_over_cgroup(take_over).build().unwrap();
            assert_eq!(base_of(&mut worker), place.with_file_name("iron-exec"));
            assert_eq!(own(place), place);
            // Which limits stand above is not known.
            assert_ne!(run(&mut worker, Command::new("true")).rung_reason, RungReason::Best);
        }
        let mut worker = builder_at(host, place.join("base")).build().unwrap();
        assert_eq!(base_of(&mut worker), place.join("base"));
    });
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn a_process_outside_its_cgroup_namespace_has_no_cgroup_to_take_over() {
    let test = "a_process_outside_its_cgroup_namespace_has_no_cgroup_to_take_over";
    if keeps_processes_in_their_namespaces() {
        return;
    }
    // It leaves after the namespace was made: its own cgroup then has a path that leads upwards.
    let setup = "echo $$ >${place%/*}/cgroup.procs; umount -l /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup";
    let unshare = &["--mount", "--cgroup"];
    Scene { test, stands_in: Some("."), unshare, setup, ..Scene::default() }.play(|_, host| {
        assert_contains(&fs::read_to_string("/proc/self/cgroup").unwrap(), &["0::/.."]);
        let mut worker = builder(host).take_over_cgroup(true).build().unwrap();
        let base = worker.capabilities().cgroup.clone().unwrap().base;
        assert_eq!(base, Path::new("/sys/fs/cgroup/iron-exec"));
        assert!(run(&mut worker, Command::new("true")).success());
    });
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn a_bind_mount_of_a_part_of_the_hierarchy_is_as_good_as_all_of_it() {
    let test = "a_bind_mount_of_a_part_of_the_hierarchy_is_as_good_as_all_of_it";
    let setup = "mkdir $place/part; echo +pids >$place/cgroup.subtree_control; echo +pids >$place/part/cgroup.subtree_control
        mount -t tmpfs none /mnt; mkdir /mnt/part; mount --bind $place/part /mnt/part; umount -l /sys/fs/cgroup";
    Scene { test, stands_in: Some("host"), unshare: &["--mount"], setup, left: &["host", "part"], ..Scene::default() }.play(|_, host| {
        let mut worker = builder(host).take_over_cgroup(true).build().unwrap();
        assert_eq!(base_of(&mut worker), Path::new("/mnt/part/iron-exec"));
        assert_limits_act(&mut worker);
        let refused = refused(&mut worker, Limits::new().memory_max(1 << 30)).to_string();
        assert_contains(&refused, &["the controller memory is not handed down to /mnt/part"]);
    });
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn our_own_cgroup_is_found_through_a_bind_mount_of_a_part() {
    let test = "our_own_cgroup_is_found_through_a_bind_mount_of_a_part";
    let setup = "mount -t tmpfs none /mnt; mkdir /mnt/part; mount --bind $place /mnt/part; umount -l /sys/fs/cgroup";
    Scene { test, stands_in: Some("."), unshare: &["--mount"], setup, left: &["supervisor"], ..Scene::default() }.play(|_, host| {
        let mut worker = builder(host).take_over_cgroup(true).build().unwrap();
        assert_eq!(base_of(&mut worker), Path::new("/mnt/part"));
        assert_limits_act(&mut worker);
    });
}

// No internal processes.

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn a_limit_below_our_own_cgroup_is_refused_until_it_is_taken_over() {
    let test = "a_limit_below_our_own_cgroup_is_refused_until_it_is_taken_over";
    Scene { test, stands_in: Some("."), left: &["supervisor"], ..Scene::default() }.play(|place, host| {
        mark(place, "user.delegate");
        let mut worker = builder(host).build().unwrap();
        assert_eq!(base_of(&mut worker), place);
        let refused = refused(&mut worker, Limits::new().pids_max(5));
        assert_contains(&refused.to_string(), &[&format!("{} holds processes of its own", place.display()), "Builder::take_over_cgroup"]);
        assert_eq!(refused.path(), Some(&*place.join("cgroup.subtree_control")));
        assert_eq!(directories(place).len(), 1, "the worker's lock");
        // Controllers that threads share (pids) the kernel would hand down all the same; but then no cgroup here could take a process any more.
        let accounting = builder(host).accounting(true).build().unwrap();
        assert_eq!(fs::read_to_string(place.join("cgroup.subtree_control")).unwrap(), "");
        assert_eq!(base_of(&mut worker), place);
        drop(accounting);
        // A second worker takes it over, and so helps the first.
        let mut second = builder(host).take_over_cgroup(true).build().unwrap();
        assert_eq!(base_of(&mut second), place);
        assert_limits_act(&mut second);
        assert_limits_act(&mut worker);
    });
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn other_processes_in_the_base_keep_limits_from_being_set_and_are_told_of() {
    let test = "other_processes_in_the_base_keep_limits_from_being_set_and_are_told_of";
    Scene { test, stands_in: Some("."), left: &["supervisor"], ..Scene::default() }.play(|place, host| {
        let other = Other::new();
        let mut worker = builder(host).take_over_cgroup(true).build().unwrap();
        assert_eq!(base_of(&mut worker), place);
        let failure = refused(&mut worker, Limits::new().pids_max(5));
        assert_contains(&failure.to_string(), &["holds processes of its own", "move them to another cgroup"]);
        assert!(worker.capabilities().limits.iter().all(|limit| limit.missing.is_some()));
        drop(other);
        assert_limits_act(&mut worker);
    });
}

// Controllers.

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn a_controller_that_is_not_handed_down_from_above_is_named_with_the_file_and_enabled_where_asked_for() {
    let test = "a_controller_that_is_not_handed_down_from_above_is_named_with_the_file_and_enabled_where_asked_for";
    let setup = "mkdir -p $place/middle/base; echo +pids >$place/cgroup.subtree_control";
    Scene { test, setup, left: &["middle"], ..Scene::default() }.play(|place, host| {
        let base = place.join("middle/base");
        let control = |directory: &Path| fs::read_to_string(directory.join("cgroup.subtree_control")).unwrap().trim_end().to_owned();
        let mut worker = builder_at(host, &base).build().unwrap();
        for (limits, controller, directory) in
            [(Limits::new().memory_max(1 << 30), "memory", place.to_owned()), (Limits::new().pids_max(5), "pids", place.join("middle"))]
        {
            let refused = refused(&mut worker, limits).to_string();
            let advice =
                format!("write \"+{controller}\" to {}/cgroup.subtree_control (Builder::enable_controllers does it)", directory.display());
            assert_contains(&refused, &[&advice]);
        }
        assert_eq!((control(place), control(&place.join("middle")), control(&base)), ("pids".to_owned(), String::new(), String::new()));
        let mut worker = builder_at(host, &base).enable_controllers(true).build().unwrap();
        assert_limits_act(&mut worker);
        assert_eq!((control(place), control(&base)), ("pids".to_owned(), "pids".to_owned()), "nothing that no limit needs");
        let greedy = Command::new("dd").args(["if=/dev/zero", "of=/dev/null", "bs=60M", "count=1"]);
        let status = run(&mut worker, greedy.limits(Limits::new().memory_max(20 << 20)));
        assert!(status.oom_killed && status.signal() == Some(Signal::KILL), "{status:?}");
        assert_contains(&control(place), &["memory"]);
    });
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn a_user_enables_controllers_in_what_is_delegated_though_nothing_above_it_can_be_written() {
    let test = "a_user_enables_controllers_in_what_is_delegated_though_nothing_above_it_can_be_written";
    let setup = "chown 54321:54321 $place $place/cgroup.procs $place/cgroup.subtree_control";
    Scene { test, stands_in: Some("host"), setup, is_nobodys: true, left: &["host"], ..Scene::default() }.play(|place, host| {
        let base = place.join("base");
        let mut worker = builder_at(host, &base).enable_controllers(true).build().unwrap();
        assert_eq!(base_of(&mut worker), base);
        assert_limits_act(&mut worker);
    });
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn what_limits_a_cgroup_above_the_base_limits_its_jobs_and_spares_the_host() {
    let test = "what_limits_a_cgroup_above_the_base_limits_its_jobs_and_spares_the_host";
    let setup = "mkdir -p $place/limited; echo '+memory +pids' >$place/cgroup.subtree_control; echo 64M >$place/limited/memory.max";
    Scene { test, stands_in: Some("host"), setup, left: &["host", "limited"], ..Scene::default() }.play(|place, host| {
        let base = place.join("limited/base");
        let mut worker = builder_at(host, &base).build().unwrap();
        assert_eq!(base_of(&mut worker), base);
        let status = run(&mut worker, Command::new("dd").args(["if=/dev/zero", "of=/dev/null", "bs=100M", "count=1"]));
        assert_eq!((status.signal(), status.rung_reason), (Some(Signal::KILL), RungReason::MemoryMaxAbove), "{status:?}");
        assert!(run(&mut worker, Command::new("true")).success());
    });
}

/// Limits that need one file.
fn limits_by_file() -> BTreeMap<&'static str, Limits> {
    let new = Limits::new;
    BTreeMap::from([
        ("cpu.max", new().cpu_max(1.0)),
        ("cpu.weight", new().cpu_weight(50)),
        ("cpuset.cpus", new().cpuset_cpus("0")),
        ("cpuset.mems", new().cpuset_mems("0")),
        ("memory.max", new().memory_max(1 << 30).memory_oom_group(false)),
        ("memory.high", new().memory_high(1 << 30).memory_oom_group(false)),
        ("memory.swap.max", new().memory_swap_max(1 << 30).memory_oom_group(false)),
        ("memory.oom.group", new().memory_oom_group(true)),
        ("pids.max", new().pids_max(100)),
        ("io.max", new().io_max(IoDevice::All, IoMax::new().write_ops(1 << 20))),
        ("io.weight", new().io_weight(50)),
    ])
}

/// Every limit can be had, or is refused for the reason that is told in advance. Returns those that can be had.
fn assert_reports_are_true(worker: &mut Worker) -> Vec<&'static str> {
    let mut limits = limits_by_file();
    let mut had = Vec::new();
    // As a worker says it that was built just now, before the first limit.
    for report in worker.capabilities().limits.clone() {
        let limits = limits.remove(report.file).unwrap_or_else(|| panic!("{} is not known here", report.file));
        match report.missing {
            None => {
                assert!(run(worker, Command::new("true").limits(limits)).success(), "{}", report.file);
                had.push(report.file);
            }
            Some(reason) => {
                let refused = refused(worker, limits);
                assert_eq!(refused.advice(), Some(&*reason), "{}", report.file);
            }
        }
    }
    assert!(limits.is_empty(), "not reported: {limits:?}");
    had
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn which_limits_can_be_had_is_told_in_advance_and_true() {
    let test = "which_limits_can_be_had_is_told_in_advance_and_true";
    let setup = "mkdir $place/some; echo '+cpu +pids' >$place/cgroup.subtree_control";
    Scene { test, stands_in: Some("host"), setup, left: &["host", "some"], ..Scene::default() }.play(|place, host| {
        let mut had = assert_reports_are_true(&mut builder(host).build().unwrap());
        // Weights are a matter of how the kernel was built.
        had.retain(|file| *file != "io.weight");
        assert_eq!(had.len(), limits_by_file().len() - 1, "{had:?}");
        let some = place.join("some");
        assert_eq!(assert_reports_are_true(&mut builder_at(host, &some).build().unwrap()), ["cpu.max", "cpu.weight", "pids.max"]);
        fs::write(some.join("cgroup.subtree_control"), "-cpu -pids").unwrap();
        let other = Other::new();
        fs::write(some.join("cgroup.procs"), other.0.id().to_string()).unwrap();
        assert_eq!(assert_reports_are_true(&mut builder_at(host, &some).build().unwrap()), Vec::<&str>::new());
        drop(other);
    });
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn which_limits_can_be_had_is_true_for_a_user_too() {
    let test = "which_limits_can_be_had_is_true_for_a_user_too";
    let setup = "echo '+memory +pids' >$place/cgroup.subtree_control; mkdir $place/jobs
        chown 54321:54321 $place/cgroup.procs $place/jobs $place/jobs/cgroup.procs";
    Scene { test, stands_in: Some("host"), setup, is_nobodys: true, left: &["host", "jobs"], ..Scene::default() }.play(|place, host| {
        let mut worker = builder_at(host, place.join("jobs")).build().unwrap();
        assert_eq!(assert_reports_are_true(&mut worker), Vec::<&str>::new());
        let limits = &worker.capabilities().limits;
        let reason = |file| limits.iter().find(|limit| limit.file == file).unwrap().missing.as_deref().unwrap();
        assert_contains(reason("pids.max"), &["jobs/cgroup.subtree_control cannot be written"]);
        assert_contains(reason("cpu.max"), &["the controller cpu is not enabled above the base"]);
    });
}

#[test]
fn a_base_behind_a_link_has_no_files_made_beside_the_link() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    fs::create_dir(host.base.as_ref().unwrap()).unwrap();
    let beside = tempfile::tempdir().unwrap();
    let link = beside.path().join("link");
    std::os::unix::fs::symlink(host.base.as_ref().unwrap(), &link).unwrap();
    let mut worker = host.builder().cgroup_base(CgroupBase::Path(link)).enable_controllers(true).build().unwrap();
    // Whether the limits can be had or not.
    for limits in [Limits::new().memory_max(1 << 30), Limits::new().pids_max(100)] {
        if let Ok(job) = worker.start(Command::new("true").limits(limits)) {
            assert!(finish(&mut worker, job).success());
        }
    }
    assert_eq!(fs::read_dir(beside.path()).unwrap().count(), 1);
    assert!(!Path::new("/cgroup.subtree_control").exists());
}
