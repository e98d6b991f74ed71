# SPDX-License-Identifier: MIT
"""
Makes a failing sequence small: drops operations, then layers and objects, then whatever of the
arguments is not needed, as long as the sequence fails with the same signature.
"""

import copy
import time


def _reduce(items, still_fails, deadline):
    """Delta debugging: the items that cannot be done without, by halves, quarters, ... singles."""
    size = max(1, len(items) // 2)
    while items:
        i = len(items)
        changed = False
        while i > 0:
            if time.monotonic() > deadline:
                return items
            start = max(0, i - size)
            candidate = items[:start] + items[i:]
            if still_fails(candidate):
                items = candidate
                changed = True
            i = start
        if size == 1 and not changed:
            return items
        size = max(1, size // 2)
    return items


def shrink(plan, ops, fails, seconds=60):
    """@fails(plan, ops) runs a sequence and says whether it fails in the same way."""
    deadline = time.monotonic() + seconds
    plan = copy.deepcopy(plan)
    ops = _reduce(list(ops), lambda o: fails(plan, o), deadline)

    def replaced(**change):
        return {**plan, **change}

    # whole layers first: their content, then the layer itself if a lower is left
    for i in reversed(range(len(plan["lowers"]))):
        if len(plan["lowers"]) > 1:
            fewer = replaced(lowers=plan["lowers"][:i] + plan["lowers"][i + 1:],
                             fs=plan["fs"][:i + 1] + plan["fs"][i + 2:])
            if fails(fewer, ops):
                plan = fewer
                continue

        def with_layer(objects, i=i):
            lowers = list(plan["lowers"])
            lowers[i] = objects
            return replaced(lowers=lowers)

        plan = with_layer(_reduce(plan["lowers"][i], lambda o: fails(with_layer(o), ops), deadline))
    if plan["upper"]:
        plan = replaced(upper=_reduce(plan["upper"], lambda o: fails(replaced(upper=o), ops),
                                      deadline))
    for change in ({"fs": ["tmp0"] * len(plan["fs"])}, {"strictatime": False}):
        if replaced(**change) != plan and fails(replaced(**change), ops):
            plan = replaced(**change)
    # what an operation or an object does not need
    for objects in plan["lowers"] + [plan["upper"] or []]:
        for obj in objects:
            for key in ("xattrs", "time", "uid", "mode"):
                if key in obj and time.monotonic() < deadline:
                    kept = dict(obj)
                    del obj[key]
                    if key == "uid":
                        obj.pop("gid", None)
                    if not fails(plan, ops):
                        obj.clear()
                        obj.update(kept)
    for i, (op, args) in enumerate(ops):
        for key in ("who", "umask"):
            if key in args and time.monotonic() < deadline:
                fewer = ops[:i] + [(op, {k: x for k, x in args.items() if k != key})] + ops[i + 1:]
                if fails(plan, fewer):
                    ops = fewer
                    args = ops[i][1]
    ops = _reduce(ops, lambda o: fails(plan, o), deadline)
    return plan, ops
