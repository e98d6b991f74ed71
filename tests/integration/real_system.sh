#!/bin/bash
# SPDX-License-Identifier: MIT
# Runs in a chroot on the mount: what people do with a Debian system. The packages were fetched before.
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin
export SOURCE_DATE_EPOCH=1700000000 GIT_AUTHOR_DATE="1700000000 +0000" GIT_COMMITTER_DATE="1700000000 +0000"
export GIT_AUTHOR_NAME=t GIT_AUTHOR_EMAIL=t@localhost GIT_COMMITTER_NAME=t GIT_COMMITTER_EMAIL=t@localhost
umask 022
step() { echo "== $SECONDS s: $*"; }

step apt-get install
apt-get install -y -q --no-download --no-install-recommends -o Dpkg::Use-Pty=0 \
	gcc libc6-dev make git python3 python3-venv sqlite3 > /dev/null

step compile
mkdir -p /srv/project/src
cd /srv/project
for i in $(seq 1 40); do
	cat > "src/part$i.c" <<-C
	#include <stdio.h>
	#include "parts.h"
	int part$i(int x) { return x * $i + $((i * 7)); }
	C
	echo "int part$i(int x);" >> src/parts.h
done
{
	echo '#include <stdio.h>'
	echo '#include "parts.h"'
	echo 'int main(void) { int n = 0;'
	for i in $(seq 1 40); do echo "n += part$i(n % 1000);"; done
	echo 'printf("%d\n", n); return 0; }'
} > src/main.c
cat > Makefile <<'MAKE'
CFLAGS = -O2 -g0 -Wall
objects = $(patsubst %.c,%.o,$(wildcard src/*.c))
program: $(objects)
	$(CC) -o $@ $(sort $(objects)) -lm
clean:
	rm -f program $(objects)
MAKE
make -s -j2
./program > out1
make -s clean
make -s -j2
./program > out2
cmp out1 out2

step git
git config --global init.defaultBranch main
git config --global gc.auto 0
git config --global pack.threads 1
git init -q /srv/repo
cd /srv/repo
for i in $(seq 1 15); do
	mkdir -p "dir$((i % 4))"
	head -c $((i * 3000)) /srv/project/program > "dir$((i % 4))/file$i"
	echo "$i" > same
	git add -A
	git commit -q -m "commit $i"
done
git checkout -q -b side HEAD~5
mkdir side
git mv dir1/file1 side/moved
git commit -q -m side
git checkout -q main
git merge -q side -m merge
git clone -q /srv/repo /srv/clone
cd /srv/clone
git checkout -q HEAD~3
git checkout -q main
git gc -q --prune=now
git fsck --no-progress
test -z "$(git status --porcelain)"

step venv
python3 -m venv /srv/venv
/srv/venv/bin/python - <<'PY'
import json, os, tempfile
with tempfile.TemporaryDirectory(dir="/srv") as d:
    p = os.path.join(d, "x.json")
    json.dump({"a": list(range(1000))}, open(p, "w"))
    assert json.load(open(p))["a"][-1] == 999
with tempfile.TemporaryFile(dir="/srv") as f:
    f.write(b"x" * 100000)
    f.flush()
    assert os.fstat(f.fileno()).st_size == 100000
PY
/srv/venv/bin/pip --version > /dev/null

step sqlite
sqlite3 /srv/db > /dev/null <<'SQL'
PRAGMA journal_mode=WAL;
CREATE TABLE t (n INTEGER PRIMARY KEY, s TEXT);
WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 20000)
INSERT INTO t SELECT n, printf('row %d', n) FROM c;
DELETE FROM t WHERE n % 3 = 0;
UPDATE t SET s = s || '!' WHERE n % 5 = 0;
PRAGMA wal_checkpoint(TRUNCATE);
SQL
sqlite3 /srv/db 'VACUUM; PRAGMA journal_mode=DELETE;' > /dev/null
test "$(sqlite3 /srv/db 'PRAGMA integrity_check; SELECT count(*) FROM t;' | tr '\n' ' ')" = "ok 13334 "

step rm -rf and reinstallation
rm -rf /usr/lib/git-core /usr/share/git-core /usr/share/doc/git
apt-get install -y -q --no-download --reinstall -o Dpkg::Use-Pty=0 git > /dev/null
git clone -q /srv/repo /srv/clone2
test -s /srv/clone2/same
rm -rf /srv/clone2

step rename of a tree from the lower layer
mv /usr/share/zoneinfo /usr/share/zoneinfo.moved 2> /dev/null || true
mv /etc/skel /etc/skel.moved
mkdir /etc/skel

step verify
dpkg --audit
# what was changed above on purpose is the only difference to the packages
dpkg --verify git gcc-12 python3.11 libc6 sqlite3
