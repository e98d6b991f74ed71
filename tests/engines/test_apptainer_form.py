# SPDX-License-Identifier: MIT
"""The mount program as apptainer runs it, which distributions do not package.

In a user namespace of one id, not always root there, with three ambient capabilities: in the
foreground, its mount awaited in mountinfo, every line on stderr shown to people, ended by SIGTERM
and a second later by SIGKILL. The container's root image is a squashfs, mounted by squashfuse.
"""

import os
import textwrap

import engines_testlib as lib
import pytest
from engines_testlib import command
from engines_world import SINGLE

# What apptainer's starter does, in the namespaces that it has entered. Its own words are on stdout.
STARTER = textwrap.dedent(
    """\
    import os, signal, subprocess, sys, time

    def start(argv, target):
        log = open(f"{target}.stderr", "w+")
        caps = "-all,+sys_admin,+sys_ptrace,+dac_override"
        p = subprocess.Popen(
            ["setpriv", "--pdeathsig=KILL", f"--inh-caps={caps}", f"--ambient-caps={caps}", *argv],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )
        deadline = time.monotonic() + 10
        while f" {target} " not in open("/proc/self/mountinfo").read():
            assert p.poll() is None and time.monotonic() < deadline, said(log)
            time.sleep(0.025)
        return p, log

    def said(log):
        log.seek(0)
        return log.read()

    def overlay(options, target, lower, upper, work):
        words = [*options, f"lowerdir={lower}"]
        words += [f"upperdir={upper}", f"workdir={work}"] if upper else []
        words.append("noacl")
        return start(["fuse-overlayfs", "-f", "-o", ",".join(words), target], target)

    def stop(p, log, target):
        p.send_signal(signal.SIGTERM)
        try:
            assert p.wait(1) == 0
            ended = "by itself"
        except subprocess.TimeoutExpired:
            p.kill()
            p.wait()
            ended = "killed"
        assert f" {target} " not in open("/proc/self/mountinfo").read()
        assert said(log) == ""
        return ended

    os.chdir(sys.argv[1])
    B = os.getcwd()
    """
)


@pytest.fixture(params=["own-id", "root"])
def apptainer(request, program, scratch):
    """Runs a script in the namespaces of a container, after STARTER: what it prints."""
    as_whom, uid = {
        "own-id": ("--map-current-user", SINGLE.uid),
        "root": ("--map-root-user", 0),
    }[request.param]
    scratch.chmod(0o777)
    namespaces = ["unshare", "--user", as_whom, "--keep-caps", "--mount"]

    def run(script):
        (scratch / "starter.py").write_text(STARTER + textwrap.dedent(script))
        argv = [*namespaces, "/usr/bin/python3", scratch / "starter.py", scratch]
        p = command(argv, lib.environment("/", "/run"), SINGLE)
        assert p.stderr == ""
        return p.stdout

    make = "cd $1; mkdir -p l/d u w m image; echo low > l/f; echo gone > l/d/g; chmod 700 l/d"
    command(["sh", "-ec", make, "sh", scratch], lib.environment("/", "/run"), SINGLE)
    run.uid = uid  # the only one that there is in the namespace
    yield run
    lib.assert_nothing_lives(scratch)


def test_writable_overlay(apptainer, scratch):
    said = apptainer(
        """
        p, log = overlay(["allow_other"], f"{B}/m", f"{B}/l", f"{B}/u", f"{B}/w")
        print(sorted(os.listdir("m")), open("m/f").read(), os.stat("m/f").st_uid == os.getuid())
        open("m/f", "a").write("more\\n")
        os.unlink("m/d/g")
        os.rename("m/f", "m/d/f")
        os.mkdir("m/new")
        print(sorted(os.listdir("m")), os.listdir("m/d"))
        print(stop(p, log, f"{B}/m"))
        """
    )
    assert said.splitlines() == ["['d', 'f'] low", " True", "['d', 'new'] ['f']", "by itself"]
    assert (scratch / "u/d/f").read_text() == "low\nmore\n"
    assert (scratch / "l/f").read_text() == "low\n"


def test_read_only_overlay(apptainer):
    said = apptainer(
        """
        os.mkdir("l2")
        open("l2/top", "w")
        p, log = overlay(["allow_other", "ro"], f"{B}/m", f"{B}/l2:{B}/l", None, None)
        try:
            open("m/x", "w")
        except OSError as e:
            print(e.strerror)
        print(sorted(os.listdir("m")))
        stop(p, log, f"{B}/m")
        """
    )
    assert said.splitlines() == ["Read-only file system", "['d', 'f', 'top']"]


def test_on_a_squashfs(apptainer, scratch, base_tar):
    """The image is a FUSE mount itself, all of it the user's; the upper is a tmpfs."""
    tree, image = scratch / "tree", scratch / "image.sif"
    tree.mkdir()
    command(["tar", "-C", tree, "-xf", base_tar], lib.environment("/", "/run"))
    os.setxattr(tree / "etc/passwd", "user.n", b"v")
    # apptainer's own squashfuse has the options uid= and gid=, which this one lacks
    owner = ["-force-uid", str(apptainer.uid), "-force-gid", str(apptainer.uid)]
    argv = ["mksquashfs", tree, image, "-quiet", "-no-progress", *owner]
    command(argv, lib.environment("/", "/run"))
    said = apptainer(
        """
        words = ["squashfuse_ll", "-f", "-o", "offset=0"]
        s, slog = start([*words, f"{B}/image.sif", f"{B}/image"], f"{B}/image")
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "u"], check=True)
        for name in ("up", "wk"):
            os.mkdir(f"u/{name}")
        p, log = overlay(["allow_other"], f"{B}/m", f"{B}/image", f"{B}/u/up", f"{B}/u/wk")
        script = "echo x >> /etc/passwd; rm /etc/group; mv /etc/passwd /root; rmdir /var/tmp;"
        script += " mkdir /var/tmp; ls /root; tail -n 1 /root/passwd; chmod 600 /root/passwd"
        argv = ["/usr/sbin/chroot", "m", "/bin/sh", "-ec", script]
        done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True,
                              env={"PATH": "/bin"})
        print(done.stdout.split(), os.getxattr("m/root/passwd", "user.n"))
        stop(p, log, f"{B}/m")
        s.terminate()
        s.wait(5)
        """
    )
    assert said.strip() == "['passwd', 'x'] b'v'"


def test_ended_while_it_is_in_use(apptainer, scratch):
    """Whoever has it open may go on until apptainer's patience is over, and nothing is lost."""
    said = apptainer(
        """
        p, log = overlay(["allow_other"], f"{B}/m", f"{B}/l", f"{B}/u", f"{B}/w")
        kept = open("m/f", "a")
        kept.write("more\\n")
        kept.flush()
        print(stop(p, log, f"{B}/m"))
        """
    )
    assert said.strip() == "killed"
    assert (scratch / "u/f").read_text() == "low\nmore\n"


def test_a_failure_is_one_line_and_a_status(apptainer):
    said = apptainer(
        """
        p = subprocess.run(
            ["fuse-overlayfs", "-f", "-o", f"allow_other,lowerdir={B}/none,noacl", f"{B}/m"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        print(p.returncode != 0, p.stdout.count("\\n"), f"{B}/none" in p.stdout)
        """
    )
    assert said.strip() == "True 1 True"
