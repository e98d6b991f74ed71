# SPDX-License-Identifier: MIT
"""The steps of a build: each is a shell script, and makes one layer.

They run in an engine's build on either driver, and in a chroot on a plain directory. A new time is
one that is named: archives have whole seconds, and two steps may be done in one.
"""

import os

from engines_testlib import BASE, command, environment

STEPS = {
    "create": r"""
        mkdir -p /w/f /w/d /w/l /w/h /w/x /w/s /w/r/z/y /w/r/z/deep/er /w/e /w/n
        for i in 1 2 3 4 5 6 7 8 9; do echo "file $i" > /w/f/$i; echo $i > /w/r/z/y/$i; done
        echo deep > /w/r/z/deep/er/file; echo sibling > /w/r/x
        for d in own sgid sticky gone emptied replaced moved renewed; do
            mkdir -p /w/d/$d/sub; echo $d > /w/d/$d/file; echo sub > /w/d/$d/sub/file; done
        chmod 2770 /w/d/sgid; chmod 1777 /w/d/sticky; chmod 7755 /w/d/own
        ln -s /w/f/1 /w/l/abs; ln -s ../f/2 /w/l/rel; ln -s nowhere /w/l/dangling
        echo one > /w/h/a0; echo two > /w/h/f1
        for name in a2 f1.hl f1.third; do ln /w/h/f1 /w/h/$name; done
        echo caps > /w/x/caps; echo xattr > /w/x/user; setfattr -n user.first -v 1 /w/x/user
        mkfifo /w/x/fifo; dd if=/dev/zero of=/w/s/zeros bs=65536 count=16 2>/dev/null
        truncate -s 8M /w/s/sparse; echo x | dd of=/w/s/sparse bs=1 seek=4M conv=notrunc 2>/dev/null
        n=$(printf 'n%.0s' $(seq 1 250)); echo long > /w/n/$n
        echo utf > '/w/n/naïve café'; echo line > "/w/n/with$(printf '\nnewline')"
        echo colon > /w/n/a:b,c; echo backslash > '/w/n/a\b'
    """,
    "change": r"""
        echo more >> /w/f/1; echo other > /w/f/2; : > /w/f/3; truncate -s 1000 /w/f/4
        touch -d '2001-02-03 04:05:06' /w/f/5
        echo x | dd of=/w/s/sparse bs=1 seek=6M conv=notrunc 2>/dev/null
        echo through > /w/l/rel; echo long > /w/n/new; echo more >> '/w/n/naïve café'
        echo copied-up >> /w/d/sgid/file; echo copied-up >> /w/d/own/sub/file
        echo copied-up >> /w/d/sticky/sub/file; mkdir /w/d/sgid/dir; echo new > /w/d/sgid/new
    """,
    "delete": r"""
        rm /w/f/6 /w/n/new; rm -r /w/d/gone; rm -r /w/d/emptied/* ; rm /w/l/dangling /w/r/x
        rm /w/n/with* /w/n/a:b,c '/w/n/a\b'; rm -r /w/s/zeros
    """,
    "opaque-renamed": r"""
        rm -rf /w/r/z && mkdir /w/r/z && echo new > /w/r/z/n
        rm -rf /w/d/renewed && mkdir -p /w/d/renewed/sub && echo new > /w/d/renewed/sub/new
    """,
    "replace": r"""
        rm /w/f/7; mkdir /w/f/7; echo in > /w/f/7/in
        rm -r /w/d/replaced; echo now > /w/d/replaced
        rm /w/l/abs; echo file > /w/l/abs; rm /w/f/8; ln -s 9 /w/f/8
        mv /w/l/rel /w/l/kept; mkdir /w/l/rel; rm /w/x/fifo; echo file > /w/x/fifo
        mkdir /w/r/z/y; echo y > /w/r/z/y/new; rm /w/d/renewed/sub/new
    """,
    "back": r"""
        echo again > /w/f/6; mkdir /w/d/gone; echo again > /w/d/gone/file
        rm -r /w/f/7; echo file > /w/f/7; rm /w/d/replaced; mkdir -p /w/d/replaced/sub
        echo again > /w/d/replaced/sub/other; rmdir /w/l/rel; ln -s ../f/2 /w/l/rel
        rm /w/l/abs; ln -s /w/f/1 /w/l/abs
    """,
    "rename": r"""
        mv /w/f/4 /w/f/four; mv /w/f/5 /w/f/9; mv /w/d/moved /w/r/moved
        mv /w/r/moved/sub /w/r/moved/bus; echo new > /w/r/moved/bus/new; rm /w/r/moved/file
        mkdir /w/d/moved; mkdir -p /w/r/new/a; echo a > /w/r/new/a/a; mv /w/r/new /w/r/newer
        mv /w/n /w/nn; mv /w/nn /w/n
    """,
    "modes": r"""
        chmod 4755 /w/f/1; chmod 2755 /w/f/2; chmod 0 /w/f/3; chmod 1700 /w/d/sticky
        mkfifo -m 640 /w/x/named; mkfifo /w/d/sticky/fifo; mkdir -m 1777 /w/x/tmp
        setcap cap_net_raw,cap_net_admin=ep /w/x/caps; cp /bin/busybox /w/x/tool
        setcap cap_net_bind_service=ep /w/x/tool
        setfattr -n user.second -v two /w/x/user; setfattr -x user.first /w/x/user
        setfattr -n user.dir -v d /w/d/own; setfattr -n user.more -v m /w/f/9
    """,
    "modes-kept": r"""
        mv /w/x/tool /w/x/moved-tool; chmod 700 /w/x/caps; echo more > /w/d/own/new
        mv /w/d/sticky /w/d/was-sticky; touch -d '2002-03-04 05:06:07' /w/f/1
        echo more >> /w/f/9; rm /w/x/named
    """,
    "hardlink": r"""
        ln /w/h/a0 /w/h/a1; echo n > /w/h/n0; ln /w/h/n0 /w/h/n1; ln -s f1 /w/h/soft
    """,
    "hardlink-write": r"""
        echo more >> /w/h/f1
    """,
    "hardlink-change": r"""
        rm /w/h/n0; chmod 600 /w/h/a1; mv /w/h/f1.hl /w/h/f1.moved
    """,
    # The rest needs a second id, and the right to give a file away.
    "owners": r"""
        chown 1000:1000 /w/f/1; chown -R 1000:1000 /w/d/own; chown -h 1000 /w/l/abs
        chown 0:1000 /w/d/sgid; chown 12:34 /w/x/caps; chmod 4711 /w/f/2
    """,
    "owners-kept": r"""
        echo in > /w/d/sgid/in; mv /w/l/abs /w/l/other; echo more >> /w/f/1; rm /w/d/own/file
    """,
}
# Other names of a file of a lower layer that was changed: overlays without an index break the link.
BROKEN_LINKS = ("w/h/a0", "w/h/a2", "w/h/f1.moved", "w/h/f1.third")
OWNED = ("owners", "owners-kept")
WITHOUT_OWNERS = {name: text for name, text in STEPS.items() if name not in OWNED}


def script(text):
    return "set -e\nPATH=/bin:/usr/sbin:/usr/bin\numask 022\n" + text + "\n"


RECIPE, RECIPE_WITHOUT_OWNERS = "Containerfile", "Containerfile.without-owners"


def write_context(directory, steps=None):
    """A directory to build in: the scripts, and Containerfiles that run them, a layer each."""
    every = steps or STEPS
    scripts = directory / "steps"
    scripts.mkdir(parents=True)
    for name, text in every.items():
        (scripts / name).write_text(script(text))
    for recipe, left_out in ((RECIPE, ()), (RECIPE_WITHOUT_OWNERS, OWNED)):
        lines = [f"FROM {BASE}", "COPY steps /steps"]
        lines += [f'RUN ["/bin/sh", "/steps/{name}"]' for name in every if name not in left_out]
        (directory / recipe).write_text("\n".join(lines) + "\n")
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return directory


def unpack_base(archive, context, directory):
    """The base image and the scripts on a plain directory."""
    directory.mkdir()
    xattrs = ["--xattrs", "--xattrs-include=*"]
    command(["tar", "-C", directory, *xattrs, "-xpf", archive], os.environ)
    command(["cp", "-a", context / "steps", directory / "steps"], os.environ)
    return directory


def run_in_chroot(steps, directory):
    enter = 'mount -t proc proc "$0/proc"; mount --rbind /dev "$0/dev"; exec chroot "$0" "$@"'
    for name in steps:
        shell = ["/bin/sh", f"/steps/{name}"]
        env = environment("/root", "/run")
        command(["unshare", "-m", "sh", "-ec", enter, directory, *shell], env)
