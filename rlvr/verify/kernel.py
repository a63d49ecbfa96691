"""What Linux offers to lock a process in, by ctypes: namespaces, mounts, capabilities, Landlock, seccomp, limits.

Standard library alone: it is loaded by a fresh interpreter that sees no installed package. Every function raises
OSError where the kernel, or the container that we are in, refuses.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable, Iterator

LIBC = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP = 1, 4, 22, 24
PR_SET_NO_NEW_PRIVS, PR_SET_CHILD_SUBREAPER, PR_CAP_AMBIENT = 38, 36, 47
EPERM, EAGAIN, ENOSYS = 1, 11, 38

MACHINE = os.uname().machine
COLUMN = {"x86_64": 0, "aarch64": 1}  # of CALLS
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# Numbers of system calls: x86_64, aarch64 (None: it does not exist there). All of these are refused.
DENIED: dict[str, tuple[int | None, int | None]] = {
    # the network, and other people's sockets
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202),
    "accept4": (288, 242),
    # other programs and other processes
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, None), "vfork": (58, None), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "process_madvise": (440, 440), "kcmp": (312, 272),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "setpriority": (141, 140), "ioprio_set": (251, 30),
    "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118),
    "sched_setattr": (314, 274), "migrate_pages": (256, 238), "move_pages": (279, 239), "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    # namespaces and mounts
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "mount_setattr": (442, 442), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    # ways around a filter, and parts of the kernel that have often been broken
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "io_setup": (206, 0),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "memfd_secret": (447, 447),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264), "fanotify_init": (300, 262), "inotify_init": (253, None),
    "inotify_init1": (294, 26), "modify_ldt": (154, None), "personality": (135, 92),
    # the machine
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "acct": (163, 89), "quotactl": (179, 60), "syslog": (103, 116), "sethostname": (170, 161),
    "setdomainname": (171, 162), "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171),
    "clock_adjtime": (305, 266), "iopl": (172, None), "ioperm": (173, None), "vhangup": (153, 58),
    # memory and queues shared with others by a number
    "mq_open": (240, 180), "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190),
    "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192), "msgget": (68, 186), "msgsnd": (69, 189),
    "msgrcv": (70, 188), "msgctl": (71, 187),
    # what Landlock does not look at: changes to a file that need no open file
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "mknod": (133, None), "mknodat": (259, 33), "truncate": (76, 45),
}  # fmt: skip
CLONE, CLONE3, KILL, TGKILL = (56, 220), (435, 435), (62, 129), (234, 131)
PRLIMIT, PRCTL, SOCKETPAIR, FCNTL, IOCTL = (302, 261), (157, 167), (53, 199), (72, 25), (16, 29)
CLONE_THREAD, SOCK_STREAM = 0x00010000, 1
OWNERS = ((FCNTL, (8, 10, 15)), (IOCTL, (0x8901, 0x8902, 0x5412)))  # F_SETOWN, F_SETSIG ..: signals to others; TIOCSTI


def checked(result: int, what: str) -> int:
    """Raise OSError for a call that returned -1."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def syscall(number: int, what: str, *args: int | bytes | ctypes._Pointer | ctypes.c_void_p | None) -> int:
    """A system call that the C library may not wrap."""
    given = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    return checked(LIBC.syscall(ctypes.c_long(number), *given), what)


def prctl(option: int, *args: int | ctypes.c_void_p) -> int:
    """prctl(2), padded with zeros."""
    given = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in args]
    return checked(LIBC.prctl(option, *given, *[ctypes.c_ulong(0)] * (4 - len(args))), f"prctl {option}")


def unshare(flags: int) -> None:
    """Leave the namespaces that `flags` name for new ones."""
    checked(LIBC.unshare(flags), f"unshare {flags:#x}")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2)."""
    texts = [text.encode() or None for text in (source, target, kind, options)]
    checked(LIBC.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]), f"mount {source} on {target}")


def read_only(path: str) -> None:
    """Everything mounted at and below `path` becomes read-only (Linux 5.12)."""
    attributes = struct.pack("<QQQQ", 0x1 | 0x2, 0, 0, 0)  # MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID
    syscall(442, "mount_setattr", -100, path.encode(), 0x8000, attributes, len(attributes))


def enter_root(path: str) -> None:
    """`path` becomes the root; the old one is gone."""
    os.chdir(path)
    syscall((155, 41)[COLUMN[MACHINE]], "pivot_root", b".", b".")
    checked(LIBC.umount2(b".", MNT_DETACH), "umount2")
    os.chdir("/")


def drop_capabilities() -> None:
    """None is left, and none can come back."""
    for capability in range(64):
        if LIBC.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) < 0:
            break  # the last one of this kernel is passed, or we hold none and the bounding set is out of reach
    prctl(PR_CAP_AMBIENT, 4)  # PR_CAP_AMBIENT_CLEAR_ALL
    header, none = struct.pack("<Ii", 0x20080522, 0), bytes(24)
    checked(LIBC.capset(header, none), "capset")


def landlock_abi() -> int:
    """The version of Landlock here; 0 where there is none."""
    return max(0, LIBC.syscall(ctypes.c_long(444), None, ctypes.c_size_t(0), ctypes.c_uint(1)))


def landlock(readable: Iterable[str]) -> None:
    """From now on this process opens nothing but what is at or below `readable`, and that for reading alone.

    What a newer kernel adds is used where it is there: no TCP (ABI 4), no abstract sockets, no signals (ABI 6).
    """
    abi = landlock_abi()
    handled = (1 << 13) - 1
    for since, bit in ((2, 13), (3, 14), (5, 15)):  # refer, truncate, ioctl on devices
        handled |= (abi >= since) << bit
    attributes = struct.pack("<QQQ", handled, 0b11 if abi >= 4 else 0, 0b11 if abi >= 6 else 0)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    ruleset = syscall(444, "landlock_create_ruleset", attributes, size, 0)
    for path in readable:
        file = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rights = 1 << 2 | (1 << 3 if os.path.isdir(path) else 0)  # read a file, read a directory
        rights |= 1 << 1 if path == os.devnull else 0  # write
        syscall(445, "landlock_add_rule", ruleset, 1, struct.pack("<Qi", rights, file), 0)
        os.close(file)
    syscall(446, "landlock_restrict_self", ruleset, 0)
    os.close(ruleset)


def seccomp(*, threads: bool) -> None:
    """Filter system calls: one process for good, no program but this one, no sockets, no signal to others."""
    code = b"".join(instructions(threads=threads))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("<HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_SECCOMP, 2, ctypes.cast(program, ctypes.c_void_p))


def instructions(*, threads: bool) -> Iterator[bytes]:
    """The filter in classic BPF. Raises OSError on a processor whose numbers are not known."""
    if MACHINE not in COLUMN:
        raise OSError(ENOSYS, f"no table of system calls for {MACHINE}")
    column = COLUMN[MACHINE]
    kill, allow = _op(0x06, 0x80000000), _op(0x06, 0x7FFF0000)
    yield _op(0x20, 4)  # the processor
    yield _op(0x15, AUDIT_ARCH[MACHINE], yes=1)
    yield kill
    yield _op(0x20, 0)  # the number, kept in the accumulator from here on
    if column == 0:
        yield _op(0x35, 0x40000000, no=1)  # the x32 numbers
        yield kill
    for numbers in DENIED.values():
        if (number := numbers[column]) is not None:
            yield from _when(number, [_error(EPERM)])
    yield from _when(CLONE3[column], [_error(ENOSYS)])  # its flags are out of sight; the C library then takes clone
    a_thread = [_argument(0), _op(0x45, CLONE_THREAD, yes=1), _error(EAGAIN), allow]
    yield from _when(CLONE[column], a_thread if threads else [_error(EAGAIN)])
    for call in (KILL, TGKILL):
        yield from _when(call[column], [_argument(0), _op(0x15, os.getpid(), yes=1), _error(EPERM), allow])
    mine = [_argument(0), _op(0x15, 0, yes=2), _op(0x15, os.getpid(), yes=1), _error(EPERM), allow]
    yield from _when(PRLIMIT[column], mine)
    stream = [_argument(1), _op(0x54, 0xF), _op(0x15, SOCK_STREAM, yes=1), _error(EPERM), allow]
    yield from _when(SOCKETPAIR[column], stream)
    tied = [_argument(0), _op(0x15, PR_SET_PDEATHSIG, yes=1), _op(0x15, PR_SET_CHILD_SUBREAPER, no=1), _error(EPERM)]
    yield from _when(PRCTL[column], [*tied, allow])
    for call, commands in OWNERS:
        left = len(commands)
        tests = [_op(0x15, command, yes=left - i) for i, command in enumerate(commands)]
        yield from _when(call[column], [_argument(1), *tests, allow, _error(EPERM)])
    yield allow


def _op(code: int, k: int, *, yes: int = 0, no: int = 0) -> bytes:
    """One instruction; `yes` and `no` say how many to skip after a test."""
    return struct.pack("<HBBI", code, yes, no, k)


def _when(number: int, body: list[bytes]) -> list[bytes]:
    """`body`, which returns, for the call with this number; others skip it."""
    return [_op(0x15, number, no=len(body)), *body]


def _argument(index: int) -> bytes:
    return _op(0x20, 16 + 8 * index)  # its lower half


def _error(code: int) -> bytes:
    return _op(0x06, 0x00050000 | code)
