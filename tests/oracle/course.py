# SPDX-License-Identifier: MIT
"""
Short courses of operations that one after the other reach what single random ones seldom do: a
directory moved and another made in its place, a file whose metadata is copied up long before its
data, the links of one file changed through each other.
"""

import os

import syscalls as sc
import values as v


class Course:
    """@generator knows the tree; steps are made up one by one, when their turn has come."""

    SHARE = 0.09  # how often one begins

    def __init__(self, generator):
        self.g = generator
        self.rng = generator.rng
        self.running = None

    def next(self):
        """(op, args), or None when nothing is to be done that belongs to a course."""
        rng = self.rng
        if self.running is None:
            if rng.random() >= self.SHARE:
                return None
            self.running = rng.choice([self.moved, self.moved, self.metadata_first, self.links])()
        elif rng.random() < 0.15:
            return None  # something else happens in between
        step = next(self.running, None)
        if step is None:
            self.running = None
        return step

    def some(self, want):
        return self.g.existing(want)

    def beside(self, p):
        """Another name in the same directory."""
        return p[:len(p) - len(p.rpartition(b"/")[2])] + self.rng.choice(v.NAMES)

    def target(self, p):
        return self.beside(p) if self.rng.random() < 0.4 else self.g.new()

    def below(self, p):
        names = [q for q in self.g.kinds if q.startswith(p + b"/")]
        return self.rng.choice(names) if names else p + b"/" + self.rng.choice(v.NAMES)

    def moved(self):
        """A directory is moved, once or more; things happen where it was and where it is."""
        rng = self.rng
        p = self.some("d")
        for _ in range(rng.randrange(1, 4)):
            to = self.target(p)
            yield "rename", {"p": p, "to": to}
            roll = rng.random()
            if roll < 0.3:
                yield "mkdir", {"p": p, "mode": 0o777}
                if rng.random() < 0.5:
                    yield "mknod", {"p": p + b"/" + rng.choice(v.NAMES), "mode": 0o100666}
            elif roll < 0.4:
                yield "rename", {"p": to, "to": self.some("d"), "flags": sc.RENAME_EXCHANGE}
            if rng.random() < 0.4:
                child = self.below(to)
                yield rng.choice([
                    ("rename", {"p": child, "to": self.target(child)}),
                    ("rename", {"p": child, "to": p}),
                    ("unlink", {"p": child}), ("rmdir", {"p": child}),
                    ("chmod", {"p": child, "mode": 0o750}),
                    ("rename", {"p": self.some(None), "to": to + b"/" + rng.choice(v.NAMES)}),
                ])
            if rng.random() < 0.2:
                yield "drop_caches", {}
            if rng.random() < 0.3:
                yield "readdir", {"p": to}
            p = to
        if rng.random() < 0.2:
            yield "rmdir", {"p": p}

    def metadata(self, p):
        """One change that needs no data."""
        rng = self.rng
        return rng.choice([
            ("chmod", {"p": p, "mode": rng.choice([0o644, 0o666, 0o600, 0o4755])}),
            ("chown", {"p": p, "uid": rng.choice([0, 1000]), "gid": 1000}),
            ("utimens", {"p": p, "atime": self.g.time(), "mtime": self.g.time()}),
            ("setxattr", {"p": p, "name": b"user.a", "value": v.data(rng.randrange(99), 5)}),
            ("stat", {"p": p}),
        ])

    def data(self, p):
        """One change that needs it, or a look at it."""
        rng = self.rng
        h = self.g.free_slot()
        roll = rng.random()
        if roll < 0.25:
            yield "truncate", {"p": p, "size": self.g.size()}
            return
        flags = rng.choice([os.O_RDWR, os.O_RDWR, os.O_RDONLY, os.O_RDWR | os.O_TRUNC,
                            os.O_RDWR | os.O_APPEND])
        yield "open", {"h": h, "p": p, "flags": flags}
        if h in self.g.direct or self.g.slots[h] != "f":
            return  # it has failed, and this is what was open before
        if roll < 0.6:
            yield "pread", {"h": h, "n": 5000, "off": rng.choice([0, 100, 4096])}
        yield "pwrite", {"h": h, "n": rng.choice([1, 100, 5000]), "tag": rng.randrange(99),
                         "off": rng.choice([0, 0, 50, 8192])}
        if rng.random() < 0.3:
            yield "lseek", {"h": h, "off": 0, "whence": rng.choice([os.SEEK_DATA, os.SEEK_HOLE])}
        if rng.random() < 0.7:
            yield "close", {"h": h}

    def metadata_first(self):
        """What a file is called and how it may be used changes, and at last what is in it."""
        rng = self.rng
        p = self.some("f")
        for _ in range(rng.randrange(1, 4)):
            yield self.metadata(p)
            roll = rng.random()
            if roll < 0.3:
                to = self.target(p)
                yield "rename", {"p": p, "to": to}
                p = to
            elif roll < 0.45:
                to = self.target(p)
                yield "link", {"p": p, "to": to}
                if rng.random() < 0.5:
                    p = to
            elif roll < 0.55:
                yield "drop_caches", {}
            elif roll < 0.65:
                to = self.some("f")
                yield "rename", {"p": p, "to": to, "flags": sc.RENAME_EXCHANGE}
                p = to
            elif roll < 0.7:
                yield "rename", {"p": p, "to": self.some("f")}
        yield from self.data(p)
        if rng.random() < 0.3:
            yield self.metadata(p)

    def links(self):
        """Links of one file, and changes through each of them."""
        rng = self.rng
        group = list(self.g.links)
        paths = rng.sample(group, min(len(group), 3)) if group else [self.some("f")]
        for _ in range(rng.randrange(2, 6)):
            p = rng.choice(paths)
            roll = rng.random()
            if roll < 0.3:
                yield self.metadata(p)
            elif roll < 0.55:
                yield from self.data(p)
            elif roll < 0.7:
                to = self.target(p)
                yield "link", {"p": p, "to": to}
                paths.append(to)
            elif roll < 0.8:
                yield "unlink", {"p": p}
            elif roll < 0.9:
                to = rng.choice([self.target(p), rng.choice(paths)])
                yield "rename", {"p": p, "to": to}
                paths.append(to)
            else:
                yield "drop_caches", {}
            if rng.random() < 0.3:
                yield "stat", {"p": rng.choice(paths)}
