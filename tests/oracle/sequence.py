# SPDX-License-Identifier: MIT
"""
One sequence: layers, two mounts over them, operations on both step by step, and what is checked on
the way and at the end. The reference is the kernel's overlayfs; its lower layers are shared with
the other side, uppers and workdirs are each side's own.
"""

import fcntl
import os
import shutil
import signal
import struct
import subprocess
import time
import traceback

import differences
import features
import generate
import layers
import mounts
import script
import syscalls as sc
import tree
from side import Side

CLOCK_REALTIME_COARSE = 5
STAGE_OPS = 40


class Failure(Exception):
    """
    The first difference of a sequence. @signature is what makes two failures the same one (for
    shrinking and for counting), @details are lines for people.
    """

    def __init__(self, where, signature, details, step=None):
        super().__init__(where)
        self.where = where
        self.signature = signature
        self.details = details
        self.step = step


def summary(result):
    """A result without what varies from one run to the next."""
    for key in ("error", "afterwards"):
        if key in result:
            return result[key]
    return "skip" if "skip" in result else "ok"


def children():
    with open("/proc/thread-self/children", encoding="ascii") as f:
        return [int(pid) for pid in f.read().split()]


def next_tick():
    """Waits for the clock that file times are taken from: parts what was before from what comes."""
    before = time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
    while (now := time.clock_gettime_ns(CLOCK_REALTIME_COARSE)) == before:
        time.sleep(0.001)
    return now


class Bench:
    """The place where one worker runs its sequences: directories, filesystems, the two mounts."""

    def __init__(self, base, reference, other, beat=lambda text, connections=(): None):
        self.base = base
        self.beat = beat
        self.reference, self.other = reference, other
        self.waited = 0
        self.mounted = []
        self.said = []  # how daemons ended, if not well
        os.makedirs(base + b"/mA/r")
        os.makedirs(base + b"/mB/r")
        for path in (b"", b"/mA", b"/mB", b"/mA/r", b"/mB/r"):
            os.chmod(base + path, 0o755)
        self.root = {"A": base + b"/mA/r", "B": base + b"/mB/r"}
        self.disk = self.make_disk()

    def make_disk(self):
        """
        A small ext4 on a loop device, with a UUID of its own as overlayfs wants it; None where
        there are no loop devices, and a tmpfs takes its place.
        """
        image, path = self.base + b"/disk.img", self.base + b"/disk"
        with open(image, "wb") as f:
            f.truncate(96 << 20)
        os.mkdir(path)
        for argv in (["mkfs.ext4", "-q", "-F", "-O", "^has_journal", image],
                     ["mount", "-o", "loop", image, path]):
            try:
                subprocess.run(argv, check=True, timeout=60, stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            except (OSError, subprocess.SubprocessError):
                os.rmdir(path)
                return None
        return path

    def end(self):
        if self.disk:
            sc.umount(self.disk, sc.MNT_DETACH)

    # ---- filesystems

    def open(self, plan, rng=None):
        """@rng: makes up the operations of the plan's stages, and notes them there."""
        self.plan = plan
        self.prefix = features.prefix(plan)
        self.said = []
        self.impl = {"A": self.reference, "B": self.other}
        self.fs = {}
        stages = plan.get("stages", ())
        data_fs = plan.get("data_fs", [])
        counted = set(plan["fs"]) | {s["fs"] for s in stages}
        # special files and symlinks cannot hold an origin in user xattrs: their names get numbers
        # of their own
        self.links = len(counted) == 1 and ("f" if self.prefix[:1] == b"u" else tree.ANY)
        for name in sorted(counted | set(data_fs)):
            path = self.base + b"/" + name.encode()
            if name != "disk" or not self.disk:
                os.mkdir(path)
                flags = sc.MS_STRICTATIME if plan.get("strictatime") else 0
                sc.mount(b"tmpfs", path, b"tmpfs", flags, b"mode=755")
            view = path + b"-view"
            os.mkdir(view)
            sc.mount(path, view, None, sc.MS_BIND)
            sc.mount(path, view, None, sc.MS_BIND | sc.MS_REMOUNT | sc.MS_NOATIME)
            self.fs[name] = (path, view)
        fs = plan["fs"]
        self.lowers, self.views, self.data = [], [], []
        data_views = []
        for i, objects in enumerate(plan["lowers"]):
            self.layer(fs[i + 1], b"/l%d" % i, objects, self.lowers, self.views)
        for i, objects in enumerate(plan.get("data", ())):
            self.layer(data_fs[i], b"/d%d" % i, objects, self.data, data_views)
        for i, stage in enumerate(stages):
            self.stage(i, stage, rng)
        self.upper, self.work = {"A": None, "B": None}, {"A": None, "B": None}
        if plan["upper"] is not None:
            path = self.fs[fs[0]][0]
            for side in "AB":
                self.upper[side] = path + b"/up" + side.encode()
                self.work[side] = path + b"/wk" + side.encode()
                os.mkdir(self.upper[side])
                os.mkdir(self.work[side])
                layers.build(self.upper[side], plan["upper"], self.prefix)
                if self.impl[side].whiteout_files:
                    layers.whiteouts_to_files(self.upper[side], self.prefix)
        self.inos = {}
        self.everything = self.views + data_views
        self.digests = [layers.digest(view, self.inos) for view in self.everything]
        others = {}
        for side in "AB" if self.upper["A"] else "":
            layers.digest(self.upper[side], others)
        self.btimes = set(self.inos.values()) - set(others.values())
        self.start = next_tick()

    def layer(self, fs, name, objects, paths, views):
        path, view = self.fs[fs]
        os.mkdir(view + name)
        layers.build(view + name, objects, self.prefix)
        paths.append(path + name)
        views.append(view + name)

    def stage(self, number, stage, rng):
        """Lets the reference work on the layers so far, and puts what it made on top of them."""
        path, view = self.fs[stage["fs"]]
        upper, work = path + b"/s%d" % number, path + b"/sw%d" % number
        os.mkdir(upper)
        os.mkdir(work)
        root = self.root["A"]
        stack = mounts.Stack(self.lowers, self.data, upper, work, features.text(stage["options"]))
        message = self.reference.mount(stack, root)
        if message:
            raise Failure("stage", ("stage",), ["the reference cannot mount: " + message])
        self.mounted.append((root, self.reference))
        side = Side("stage", root, 0)

        def do(op, args):
            if op != "drop_caches":
                return side.run(op, args)
            mounts.drop_caches(root)
            return {}

        try:
            if stage["ops"] is None:
                stage["ops"] = []
                generator = generate.Generator(rng, self.plan, stage["options"])
                for i in range(STAGE_OPS):
                    if i % 10 == 0:
                        generator.learn(tree.look(root, lambda ns: ns))
                    op, args = generator.next()
                    stage["ops"].append((op, args))
                    generator.observe(op, args, do(op, args))
            else:
                for op, args in stage["ops"]:
                    do(op, args)
        finally:
            side.destroy()
        self.umount(root)
        self.clear(self.base + b"/mA", b"r")  # what came there through a symlink to ..
        # their links count as long as they are there
        for name in os.listdir(work):
            if name != b"index" or not stage["keep"]:
                shutil.rmtree(work + b"/" + name)
        self.lowers.insert(0, upper)
        self.views.insert(0, view + b"/s%d" % number)

    def reap(self, wait=False):
        """
        Collects daemons that have ended; with @wait all of them, killing what does not end. Returns
        what is to be said of those that did not end well.
        """
        deadline = time.monotonic() + 10
        said = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid:
                if status:
                    said.append(("killed by signal %d" % -code) if (
                        code := os.waitstatus_to_exitcode(status)) < 0 else "exit status %d" % code)
            elif not wait:
                break
            elif time.monotonic() > deadline:
                said.append("does not end")
                for child in children():
                    os.kill(child, signal.SIGKILL)
                deadline += 60
            else:
                self.beat("waiting for the daemon to end")
                time.sleep(0.001)
        self.said += said

    def close(self):
        for root, _ in list(self.mounted):
            try:
                sc.umount(root, sc.MNT_DETACH)
            except OSError:
                pass
        self.mounted.clear()
        for path, view in getattr(self, "fs", {}).values():
            for p in (view, path):
                try:
                    if p != self.disk:
                        sc.umount(p, sc.MNT_DETACH)
                except OSError:
                    pass
                if p != self.disk:
                    shutil.rmtree(p, ignore_errors=True)
        self.fs = {}
        if self.disk:
            self.clear(self.disk, b"lost+found")
        for side in (b"/mA", b"/mB"):
            self.clear(self.base + side, b"r")

    def clear(self, directory, but):
        """
        Removes all but one name, also what operations have made immutable through a ".." symlink.
        """
        for name in os.listdir(directory):
            path = directory + b"/" + name
            if name == but:
                continue
            if not os.path.islink(path) and (os.path.isfile(path) or os.path.isdir(path)):
                fd = os.open(path, os.O_RDONLY)
                try:
                    fcntl.ioctl(fd, sc.FS_IOC_SETFLAGS, struct.pack("<II", 0, 0))
                except OSError:
                    pass
                os.close(fd)
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)

    # ---- mounts

    def connections(self):
        return [mounts.connection(root) for root, impl in self.mounted if impl.fuse]

    def mount(self, root, impl, side):
        """Mounts @side's layers at @root."""
        stack = mounts.Stack(self.lowers, self.data, self.upper[side], self.work[side],
                             features.text(self.plan.get("options", {})))
        self.beat("mounting " + impl.name, self.connections())
        deadline = time.monotonic() + 10
        while True:
            message = impl.mount(stack, root)
            if message is None:
                break
            # the daemon of the mount before may still be on its way out
            if not impl.fuse or "use" not in message or time.monotonic() > deadline:
                raise Failure("mount", ("mount", impl.name), ["cannot mount: " + message])
            self.waited += 1
            time.sleep(0.01)
        self.mounted.append((root, impl))
        self.beat("mounted", self.connections())

    def umount(self, root):
        self.beat("unmounting", self.connections())
        deadline = time.monotonic() + 5
        while True:
            try:
                sc.umount(root)
                break
            except OSError as e:
                if e.errno != 16 or time.monotonic() > deadline:
                    raise Failure("umount", ("umount", e.errno), ["umount: %s" % e]) from e
                time.sleep(0.01)
        self.mounted = [m for m in self.mounted if m[0] != root]
        self.reap()

    def end_volatile(self, side):
        """
        A volatile mount leaves a mark in its workdir with which nobody mounts it again until it is
        taken away by hand. Returns what there was.
        """
        mark = self.work[side] + b"/work/incompat"
        there = [(os.path.relpath(path, mark), sorted(files))
                 for path, _, files in sorted(os.walk(mark))]
        shutil.rmtree(mark, ignore_errors=True)
        return there

    def look(self, root, blocks=True):
        self.beat("looking at the tree", self.connections())
        return tree.look(root, self.when, blocks and self.plan["fs"][0] != "disk", self.btimes,
                         self.links)

    def when(self, ns):
        return "now" if self.start <= ns <= self.start + 3600 * 10**9 else ns


class Run:
    """One sequence on a bench. @generator makes up operations; without it they are given."""

    def __init__(self, bench, plan, ops=None, generator=None, count=100, every=10, rng=None):
        self.bench = bench
        self.plan = plan
        self.given = ops
        self.generator = generator
        self.count, self.every, self.rng = count, every, rng
        self.ops = [] if ops is None else list(ops)
        self.trees = {}
        self.swapped = False

    def run(self):
        """Raises Failure. The operations are in self.ops."""
        bench = self.bench
        self.sides = {}
        try:
            bench.open(self.plan, self.rng)
            for side in "AB":
                bench.mount(bench.root[side], bench.impl[side], side)
                self.sides[side] = Side(bench.impl[side].name, bench.root[side], bench.start)
                self.sides[side].touches_opened = any(i.silent_open for i in bench.impl.values())
                self.sides[side].indexed = features.on(self.plan, "index")
                self.sides[side].indexes_all = features.on(self.plan, "nfs_export")
            # on both sides, and of a replay too: what was once looked up is known otherwise
            seen = [bench.look(bench.root[side]) for side in "AB"]
            if self.generator:
                self.generator.learn(seen[0])
            try:
                if self.given is None:
                    self.make()
                else:
                    for step, (op, args) in enumerate(self.given):
                        self.step(step, op, args)
                self.finish()
            except differences.Parted:
                pass
            except OSError as e:
                raise Failure("harness", ("harness", e.errno, str(e.strerror)),
                              ["a call of the comparison itself failed: %r" % e,
                               *traceback.format_exc().splitlines()[-8:]]) from e
        except Failure as f:
            self.clean_up()
            f.details += ["the daemon: " + word for word in bench.said]
            raise
        except BaseException:
            self.clean_up()
            raise
        self.clean_up()
        if bench.said:
            raise Failure("daemon", ("daemon", *bench.said), ["the daemon: %s" % bench.said])

    def clean_up(self):
        for side in self.sides.values():
            side.destroy()
        self.bench.beat("cleaning up", self.bench.connections())
        self.bench.close()
        self.bench.reap(wait=True)

    def make(self):
        often = 0.5 if self.plan.get("options") else 0.3
        remount_at = self.rng.randrange(self.count) if self.rng.random() < often else -1
        for i in range(self.count):
            if i == remount_at:
                self.add("remount", {"swap": self.rng.random() < 0.5})
            op, args = self.generator.next()
            self.add(op, args)
            if i % self.every == self.every - 1 and i != self.count - 1:
                self.add("check", {})

    def add(self, op, args):
        self.ops.append((op, args))
        self.step(len(self.ops) - 1, op, args)

    def blocks(self):
        """
        Whether st_blocks is comparable: not once a mapping has filled holes, or one implementation
        goes on with what the other has copied up (see other_holes).
        """
        return not self.swapped and not any(side.mapped for side in self.sides.values())

    # which side the kernel mounts, and which the other
    def kernel_side(self):
        return "A" if self.bench.impl["A"] is self.bench.reference else "B"

    def step(self, step, op, args):
        bench = self.bench
        bench.beat("%s %r" % (op, args))
        try:
            if op == "check":
                self.check("check")
                if self.generator:
                    self.generator.learn(self.trees[self.kernel_side()])
            elif op == "drop_caches":
                # reconfiguring a union without upper is refused: it cannot become writable
                for side in "AB" if self.plan["upper"] is not None else "":
                    mounts.drop_caches(bench.root[side])
            elif op == "remount":
                self.remount(args["swap"])
            else:
                self.both(op, args)
        except Failure as f:
            f.step = step
            raise

    def both(self, op, args):
        ref = self.kernel_side()
        kernel, plyfs = self.sides[ref], self.sides["B" if ref == "A" else "A"]
        if op == "sendfile" and (kernel.same_file(args) or plyfs.same_file(args)):
            return  # reads what it has just written, or not
        expected = kernel.run(op, args)
        got = plyfs.run(op, args)
        if self.generator:
            self.generator.observe(op, args, expected)
        if expected == got or differences.operation_allowed(op, args, expected, got, kernel, plyfs):
            return
        keys = sorted(k for k in expected.keys() | got.keys() if expected.get(k) != got.get(k))
        a, b = summary(expected), summary(got)
        signature = ("op", op, a, b) + (tuple(keys) if a == b else ())
        raise Failure("%s" % op, signature,
                      ["operation  " + script.call(op, args)]
                      + ["%-10s kernel %r, plyfs %r" % (k, expected.get(k), got.get(k))
                         for k in keys])

    def remount(self, swap):
        bench = self.bench
        for side in "AB":
            self.sides[side].close_all()
            bench.umount(bench.root[side])
        self.volatile()
        if self.generator:
            self.generator.forget_handles()
        if swap and not bench.other.whiteout_files:
            self.swapped = True
            bench.impl["A"], bench.impl["B"] = bench.impl["B"], bench.impl["A"]
        for side in "AB":
            bench.mount(bench.root[side], bench.impl[side], side)
            self.sides[side].name = bench.impl[side].name
        self.trees = {}

    # ---- checks

    def differ(self, where, found, kernel=None, plyfs=None):
        """@kernel and @plyfs are the sides, where the trees are still mounted."""
        found = [d for d in found if not differences.tree_allowed(*d, kernel, plyfs)]
        if found:
            signature = ("tree", where, tuple(sorted({d[1] for d in found})))
            raise Failure(where, signature,
                          ["%r %s: kernel %r, plyfs %r" % d for d in found[:40]])

    def check(self, where):
        bench = self.bench
        ref = self.kernel_side()
        other = "B" if ref == "A" else "A"
        expected = bench.look(bench.root[ref], self.blocks())
        got = bench.look(bench.root[other], self.blocks())
        differences.part_if_unlistable(expected, got)
        self.differ(where, tree.compare(expected, got), self.sides[ref],
                    self.sides[other])
        if bench.impl[other].fuse:
            # in user xattrs only these can hold an origin
            kept = "fd" if bench.prefix[:1] == b"u" else tree.ANY + "d"
            self.differ(where, tree.check_inos(got, kept))
            if self.trees:
                reused = self.plan["fs"][0] == "disk"
                self.differ(where, tree.check_constant(
                    self.trees[ref], expected, self.trees[other], got,
                    lambda ino: not reused or ino in bench.inos, kept))
        self.trees = {ref: expected, other: got}

    def finish(self):
        bench = self.bench
        ref = self.kernel_side()
        other = "B" if ref == "A" else "A"
        self.check("at the end")
        for side in "AB":
            self.sides[side].close_all()
            self.write_back(side)
        self.check("after the last close")
        if any(side.written_by_mapping for side in self.sides.values()):
            self.check("after the last close")  # the first one may have helped an mtime
        kernel, plyfs = bench.impl[ref], bench.impl[other]
        last = self.trees[ref]
        for side in "AB":
            bench.umount(bench.root[side])
        self.lowers()
        if self.plan["upper"] is None:
            return
        self.volatile()
        self.workdir(other)
        if not plyfs.whiteout_files:
            self.uppers(ref, other)
        # each upper by the other implementation, then by its own again
        rounds = [("each upper by the other", other, ref), ("each upper by its own again", ref, other)]
        for where, kernel_over, plyfs_over in rounds[plyfs.whiteout_files:]:
            self.reopened(where, kernel_over, plyfs_over, last)
        self.lowers()

    def uppers(self, ref, other):
        """What both have left on disk."""
        bench = self.bench
        plyfs = bench.impl[other]
        expected = tree.on_disk(bench.upper[ref], bench.work[ref], bench.views, bench.prefix)
        upper = tree.on_disk(bench.upper[other], bench.work[other], bench.views, bench.prefix)
        found = tree.compare(expected, upper)
        if features.on(self.plan, "index"):
            found = differences.without_other_aliases(found, expected, upper, bench.prefix)
        if features.on(self.plan, "nfs_export"):
            found = differences.without_miscounted(found, expected, upper, bench.prefix,
                                                   self.swapped)
        self.differ("the uppers on disk", found)
        if plyfs.fuse and not self.swapped:  # the kernel's overlayfs forgets it when it links
            self.differ("the upper on disk", tree.check_impure(upper, bench.prefix))

    def reopened(self, where, kernel_over, plyfs_over, last):
        """Both show the tree that there was @last, over the upper of this side each."""
        bench = self.bench
        ref = self.kernel_side()
        kernel, plyfs = bench.impl[ref], bench.impl["B" if ref == "A" else "A"]
        for side, impl in ((kernel_over, kernel), (plyfs_over, plyfs)):
            bench.mount(bench.root[side], impl, side)
        by_kernel = bench.look(bench.root[kernel_over], self.blocks())
        by_plyfs = bench.look(bench.root[plyfs_over], self.blocks())
        indexed, counted = self.sides[ref].indexed, self.sides[ref].indexes_all
        # what is counted otherwise under another name
        sides = (self.sides[kernel_over], self.sides[plyfs_over]) if plyfs.whiteout_files else ()
        self.differ(where, [
            d for d in tree.compare(by_kernel, by_plyfs) if d[1] != "blocks"
            and not (counted and differences.counts_its_index(*d))
            and not (indexed and differences.above_an_alias(by_plyfs, *d))], *sides)
        for name, now in (("plyfs", by_plyfs), ("kernel", by_kernel)):
            # a count that has gone wrong lasts as long as the mount: now both count anew
            # and names that cannot be looked up are listed, or not, with what is united
            self.differ(where + ", " + name, [
                d for d in tree.compare(last, now)
                if not (indexed and (d[1] == "nlink" or d[1:] == ("extra", None, "error ENOENT")
                                     or differences.above_an_alias(now, *d)))],
                *(sides if name == "plyfs" else ()))
        for side in "AB":
            bench.umount(bench.root[side])
        self.volatile()

    def volatile(self):
        """Both sides leave the mark of a volatile mount, or neither does."""
        bench = self.bench
        if self.plan["upper"] is None:
            return
        marks = {side: bench.end_volatile(side) for side in "AB"}
        if marks["A"] != marks["B"]:
            raise Failure("the mark of a volatile mount", ("volatile",),
                          ["%s leaves %r" % (bench.impl[s].name, marks[s]) for s in "AB"])

    def write_back(self, side):
        """What was written through mappings reaches the upper now, and its mtime."""
        fd = os.open(self.bench.root[side], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sc.syncfs(fd)
        finally:
            os.close(fd)

    def lowers(self):
        """Nobody wrote a lower layer, not even an atime."""
        for i, (view, before) in enumerate(zip(self.bench.everything, self.bench.digests)):
            after = layers.digest(view)
            if after == before:
                continue
            names = ["mode", "uid", "gid", "nlink", "mtime", "ctime", "content", "xattrs", "atime"]
            found = []
            for path in sorted(before.keys() | after.keys()):
                a, b = before.get(path), after.get(path)
                if a is None or b is None:
                    found.append((path, "there", a is not None, b is not None))
                else:
                    found += [(path, n, x, y) for n, x, y in zip(names, a, b) if x != y]
            raise Failure("lower layer written", ("lower", tuple(sorted({f[1] for f in found}))),
                          ["layer %d %r %s: was %r, is %r" % (i, *f) for f in found[:20]])

    def workdir(self, side):
        """Nothing is left in workdir but whiteouts kept for the next use."""
        left = []
        work = self.bench.work[side]
        for top in os.listdir(work):
            if top not in (b"work", b"index"):
                left.append(top)
                continue
            for name in os.listdir(work + b"/" + top):
                if top == b"index" and name[:1] != b"#":
                    continue  # compared with the uppers
                try:
                    st = os.lstat(work + b"/" + top + b"/" + name)
                except FileNotFoundError:
                    continue  # the daemon, on its way out, is just clearing up
                if (st.st_mode >> 12, st.st_rdev) != (0o2, 0):
                    left.append(top + b"/" + name)
        if left:
            raise Failure("litter in workdir", ("workdir",), ["left in workdir: %r" % left[:20]])
