# SPDX-License-Identifier: MIT
"""A storm: processes that change their own parts of a union, each by a plan known beforehand.

A plan is a list of steps that follows from a seed and from what lies in the layers. A worker notes
in shared memory when it begins a step and when it has ended it, so that after any interruption its
part of the tree must be what the ended steps make of it, with the one step that was going on either
done or not done: expected() gives both.
"""

import mmap
import os
import random
import struct

import plyfs_testlib as lib
from plyfs_testlib import renameat2

BLOCK = 4096


def block(tag, n):
    """The n-th block of what tag stands for."""
    seed = f"{tag}:{n};".encode()
    return (seed * (BLOCK // len(seed) + 1))[:BLOCK]


def content(tag, blocks):
    return b"".join(block(tag, n) for n in range(blocks))


class Model:
    """One worker's part: {name: object}, an object being a dict that hard links share."""

    def __init__(self, prefix):
        self.prefix = prefix
        self.names = {}

    @staticmethod
    def file(tag, blocks):
        return {"kind": "file", "tag": tag, "blocks": blocks, "mode": 0o644, "xattr": None}

    @staticmethod
    def directory(lower=False):
        return {"kind": "dir", "lower": lower, "mode": 0o755}

    def inside(self, directory):
        return [n for n in self.names if n.startswith(directory + "/")]

    def pick(self, rng, test):
        found = sorted(n for n, o in self.names.items() if test(n, o))
        return rng.choice(found) if found else None

    def snapshot(self):
        """What can be compared with a tree on disk."""
        out = {}
        for name, o in self.names.items():
            if o["kind"] == "file":
                links = sum(1 for other in self.names.values() if other is o)
                out[name] = ("file", o["tag"], o["blocks"], o["mode"], o["xattr"], links)
            elif o["kind"] == "dir":
                out[name] = ("dir", o["mode"])
            else:
                out[name] = ("link", o["target"])
        return out

    # each step: plan(rng) chooses its arguments, apply() changes the model

    def apply(self, step):
        kind, *args = step
        getattr(self, "do_" + kind)(*args)

    def do_append(self, name, tag):
        o = self.names[name]
        assert tag == o["tag"]
        o["blocks"] += 1

    def do_chmod(self, name, mode):
        self.names[name]["mode"] = mode

    def do_setxattr(self, name, value):
        self.names[name]["xattr"] = value

    def do_truncate(self, name, blocks):
        self.names[name]["blocks"] = blocks

    def do_unlink(self, name):
        del self.names[name]

    def do_rmdir(self, name):
        del self.names[name]

    def do_rename(self, old, new):
        o = self.names.pop(old)
        for name in self.inside(old):
            self.names[new + name[len(old) :]] = self.names.pop(name)
        self.names[new] = o

    def do_exchange(self, a, b):
        inside = [(n, a, b) for n in self.inside(a)] + [(n, b, a) for n in self.inside(b)]
        moved = {to + n[len(top) :]: self.names.pop(n) for n, top, to in inside}
        self.names.update(moved)
        self.names[a], self.names[b] = self.names[b], self.names[a]

    def do_rewrite(self, name, n):
        """A block written with what it holds: the same to look at, but the data is needed."""

    def do_open(self, name):
        """For writing, and nothing is written."""

    def do_create(self, name, tag, blocks):
        self.names[name] = self.file(tag, blocks)

    def do_mkdir(self, name):
        self.names[name] = self.directory()
        # a setgid directory passes the bit on
        self.names[name]["mode"] |= self.names[os.path.dirname(name)]["mode"] & 0o2000

    def do_symlink(self, target, name):
        self.names[name] = {"kind": "link", "target": target}

    def do_link(self, old, new):
        self.names[new] = self.names[old]


def perform(root, step):
    """The step on a real tree."""
    kind, *args = step
    paths = [os.path.join(root, a) if isinstance(a, str) else a for a in args]
    if kind == "append":
        o_tag = args[1]
        fd = os.open(paths[0], os.O_WRONLY | os.O_APPEND)
        try:
            n = os.fstat(fd).st_size // BLOCK
            os.write(fd, block(o_tag, n))
        finally:
            os.close(fd)
    elif kind == "rewrite":
        with lib.opened(paths[0], os.O_RDWR) as fd:
            os.pwrite(fd, os.pread(fd, BLOCK, args[1] * BLOCK), args[1] * BLOCK)
    elif kind == "open":
        os.close(os.open(paths[0], os.O_WRONLY))
    elif kind == "chmod":
        os.chmod(paths[0], args[1])
    elif kind == "setxattr":
        os.setxattr(paths[0], "user.storm", str(args[1]).encode())
    elif kind == "truncate":
        os.truncate(paths[0], args[1] * BLOCK)
    elif kind == "unlink":
        os.unlink(paths[0])
    elif kind == "rmdir":
        os.rmdir(paths[0])
    elif kind == "rename":
        os.rename(paths[0], paths[1])
    elif kind == "exchange":
        renameat2(paths[0], paths[1], lib.RENAME_EXCHANGE)
    elif kind == "create":
        fd = os.open(paths[0], os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        try:
            os.write(fd, content(args[1], args[2]))
        finally:
            os.close(fd)
    elif kind == "mkdir":
        os.mkdir(paths[0], 0o755)
    elif kind == "symlink":
        os.symlink(args[0], paths[1])
    elif kind == "link":
        os.link(paths[0], paths[1])
    else:
        raise AssertionError(kind)


WEIGHTS = {
    "append": 8,
    "chmod": 4,
    "setxattr": 2,
    "truncate": 2,
    "unlink": 5,
    "rmdir": 2,
    "rename": 8,
    "rename_over": 5,
    "rename_dir": 2,
    "exchange": 3,
    "create": 6,
    "mkdir": 3,
    "symlink": 1,
    "link": 2,
    "empty_dir": 2,
}

# with redirect_dir=on and metacopy=on, on top of those
FEATURE_WEIGHTS = {
    "chmod": 8,
    "link": 5,
    "rewrite": 4,
    "open": 2,
    "rename_dir": 8,
    "rename_dir_over": 3,
    "exchange_dir": 4,
}
LONGEST = 180  # bytes of a name: what is moved from there gets a redirect of 256 at most


def make_plan(model, seed, length, features=False):
    """Steps that are all valid one after the other; the model ends up at the end of the plan.

    features: directories of lower layers may be renamed, and some steps are about metacopies.
    """
    rng = random.Random(seed)
    fresh = iter(range(1, 1 << 30))
    steps = []

    def is_file(_, o):
        return o["kind"] == "file"

    def is_dir(_, o):
        return o["kind"] == "dir"

    def place():
        parent = model.pick(rng, lambda n, o: is_dir(n, o) and len(n) < LONGEST)
        return f"{parent}/n{model.prefix}-{next(fresh)}"

    def gone_or_fresh():
        # names that were deleted are used again: over whiteouts
        if deleted and rng.random() < 0.5:
            name = rng.choice(deleted)
            parent = model.names.get(os.path.dirname(name))
            if name not in model.names and parent and parent["kind"] == "dir":
                return name
        return place()

    deleted = []
    weight = {**WEIGHTS, **FEATURE_WEIGHTS} if features else WEIGHTS
    kinds, weights = list(weight), list(weight.values())

    def inner_dir(n, o):
        return o["kind"] == "dir" and "/" in n and (features or not o["lower"])

    def apart(a, b):
        return not (a + "/").startswith(b + "/") and not (b + "/").startswith(a + "/")

    while len(steps) < length:
        kind = rng.choices(kinds, weights)[0]
        f = model.pick(rng, is_file)
        new = []
        if kind == "append" and f:
            new = [("append", f, model.names[f]["tag"])]
        elif kind == "chmod":
            n = model.pick(rng, lambda _, o: o["kind"] != "link")
            modes = [0o711, 0o755, 0o700, 0o2750]
            if model.names[n]["kind"] == "file":
                modes = [0o600, 0o644, 0o755, 0o700]
            new = [("chmod", n, rng.choice(modes))]
        elif kind == "setxattr" and f:
            new = [("setxattr", f, rng.randrange(1000))]
        elif kind == "truncate" and f:
            new = [("truncate", f, rng.randrange(model.names[f]["blocks"] + 1))]
        elif kind == "unlink":
            n = model.pick(rng, lambda _, o: o["kind"] != "dir")
            if n:
                deleted.append(n)
                new = [("unlink", n)]
        elif kind == "rmdir":
            n = model.pick(
                rng, lambda n, o: o["kind"] == "dir" and "/" in n and not model.inside(n)
            )
            if n:
                deleted.append(n)
                new = [("rmdir", n)]
        elif kind == "empty_dir":
            n = model.pick(rng, lambda n, o: o["kind"] == "dir" and "/" in n)
            if n and len(model.inside(n)) < 8:
                for inner in sorted(model.inside(n), reverse=True):
                    new.append(("rmdir" if model.names[inner]["kind"] == "dir" else "unlink", inner))
                new.append(("rmdir", n))
                new.append(("mkdir", n))
        elif kind == "rename" and f:
            new = [("rename", f, gone_or_fresh())]
            deleted.append(f)
        elif kind == "rename_over" and f:
            g = model.pick(rng, lambda n, o: is_file(n, o) and o is not model.names[f])
            if g:
                new = [("rename", f, g)]
                deleted.append(f)
        elif kind == "rename_dir":
            n = model.pick(rng, inner_dir)
            if n:
                to = gone_or_fresh()
                if not (to + "/").startswith(n + "/"):
                    new = [("rename", n, to)]
                    deleted.append(n)
        elif kind == "rename_dir_over":
            n = model.pick(rng, inner_dir)
            to = model.pick(rng, lambda n, o: inner_dir(n, o) and not model.inside(n))
            if n and to and apart(n, to):
                new = [("rename", n, to)]
        elif kind == "exchange_dir":
            n = model.pick(rng, inner_dir)
            to = model.pick(rng, lambda n, o: "/" in n and o["kind"] != "link")
            if n and to and apart(n, to):
                new = [("exchange", n, to)]
        elif kind == "rewrite" and f and model.names[f]["blocks"]:
            new = [("rewrite", f, rng.randrange(model.names[f]["blocks"]))]
        elif kind == "open" and f:
            new = [("open", f)]
        elif kind == "exchange" and f:
            g = model.pick(rng, lambda n, o: is_file(n, o) and o is not model.names[f])
            if g:
                new = [("exchange", f, g)]
        elif kind == "create":
            n = gone_or_fresh()
            new = [("create", n, f"t{model.prefix}-{next(fresh)}", rng.randrange(1, 4))]
        elif kind == "mkdir":
            new = [("mkdir", gone_or_fresh())]
        elif kind == "symlink":
            new = [("symlink", f"target{next(fresh)}", gone_or_fresh())]
        elif kind == "link" and f:
            new = [("link", f, gone_or_fresh())]
        for step in new:
            model.apply(step)
            steps.append(step)
    return steps


def make_layers(lowers, prefix, directories=3, files=5, blocks=24):
    """A worker's part of the lower layers, and the model of it."""
    model = Model(prefix)
    top = f"w{prefix}"
    model.names[top] = Model.directory(lower=True)
    for layer in lowers:
        lib.mkdir(layer / top, mode=0o755)
    for d in range(directories):
        name = f"{top}/d{d}"
        model.names[name] = Model.directory(lower=True)
        for k, layer in enumerate(lowers):
            lib.mkdir(layer / name, mode=0o755)
            for i in range(files):
                if (i + k) % 2 and k < len(lowers) - 1:
                    continue
                tag, n = f"low{prefix}-{d}-{i}-{k}", 1 + (i * 7 + d) % blocks
                lib.write(layer / name / f"f{i}", content(tag, n), mode=0o644)
                if f"{name}/f{i}" not in model.names:
                    model.names[f"{name}/f{i}"] = Model.file(tag, n)
    return model


class Worker:
    """One process that carries out a plan, and the progress it noted."""

    def __init__(self, root, steps):
        self.root, self.steps = os.fspath(root), steps
        self.progress = mmap.mmap(-1, 4096)
        self.pid = None

    def start(self):
        self.pid = os.fork()
        if self.pid:
            return
        status = 3
        try:
            for i, step in enumerate(self.steps):
                struct.pack_into("=I", self.progress, 0, i + 1)
                perform(self.root, step)
                struct.pack_into("=I", self.progress, 4, i + 1)
            status = 0
        except OSError as e:
            struct.pack_into("=I", self.progress, 8, e.errno)
            status = 1
        finally:
            os._exit(status)

    def wait(self):
        """0: all done; 1: a step failed."""
        _, status = os.waitpid(self.pid, 0)
        self.pid = None
        return os.waitstatus_to_exitcode(status)

    def kill(self):
        if self.pid:
            os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)
            self.pid = None

    @property
    def begun(self):
        return struct.unpack_from("=I", self.progress, 0)[0]

    @property
    def ended(self):
        return struct.unpack_from("=I", self.progress, 4)[0]

    @property
    def errno(self):
        return struct.unpack_from("=I", self.progress, 8)[0]

    def failure(self):
        step = self.steps[self.begun - 1]
        return f"step {self.begun - 1} {step}: {os.strerror(self.errno)}"


def expected(model, steps, ended, begun):
    """[what the tree is]: one answer, or two when a step was going on."""
    for step in steps[:ended]:
        model.apply(step)
    answers = [model.snapshot()]
    if begun > ended:
        model.apply(steps[ended])
        answers.append(model.snapshot())
    return answers


def observe(root, top):
    """The tree below root/top as Model.snapshot() puts it; content that is not whole is told."""
    out, problems = {}, []
    for rel in lib.walk(os.path.join(root, top)):
        name = top if rel == "." else os.path.join(top, rel)
        path = os.path.join(root, name)
        st = os.lstat(path)
        if os.path.islink(path):
            out[name] = ("link", os.readlink(path))
        elif os.path.isdir(path):
            out[name] = ("dir", st.st_mode & 0o7777)
        else:
            with open(path, "rb") as f:
                data = f.read()
            tag = data.split(b":", 1)[0].decode(errors="replace")
            blocks = len(data) // BLOCK
            if data != content(tag, blocks):
                problems.append(f"{name}: {len(data)} bytes that are not whole: {data[:40]!r}")
            mark = lib.xattr(path, "user.storm")
            out[name] = (
                "file", tag, blocks, st.st_mode & 0o7777,
                None if mark is None else int(mark), st.st_nlink,
            )
    return out, problems


def differences(seen, want):
    """Lines; an empty file matches whatever tag it had."""
    lines = []
    for name in sorted(set(seen) | set(want)):
        a, b = seen.get(name), want.get(name)
        if a and b and a[0] == b[0] == "file" and a[2] == b[2] == 0:
            a, b = (*a[:1], *a[2:]), (*b[:1], *b[2:])
        if a != b:
            lines.append(f"{name}: is {a}, should be {b}")
    return lines


def check_worker(root, model, worker, interrupted):
    """Lines of what is wrong with this worker's part of the tree."""
    top = f"w{model.prefix}"
    seen, problems = observe(root, top)
    answers = expected(model, worker.steps, worker.ended, worker.begun)
    step = worker.steps[worker.ended] if worker.begun > worker.ended else None
    if not interrupted:
        answers = answers[:1]
    found = [differences(seen, a) for a in answers]
    if step and step[0] == "create" and interrupted:
        # a file that was being written is empty or the beginning of its content
        problems = [p for p in problems if not p.startswith(step[1] + ":")]
        found.append([line for line in found[-1] if not line.startswith(step[1] + ":")])
    best = min(found, key=len)
    if best:
        problems += [f"worker {model.prefix}, ended {worker.ended} steps, then {step}", *best[:10]]
        problems.append(f"the last steps: {worker.steps[max(0, worker.ended - 6) : worker.ended]}")
    return problems


