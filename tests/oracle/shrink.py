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


def _shrink_features(plan, fails, deadline):
    """Options, stages and data-only layers. Returns a plan; @fails judges one."""

    def attempt(**change):
        nonlocal plan
        if time.monotonic() < deadline and fails({**plan, **change}):
            plan = {**plan, **change}
            return True
        return False

    def without(items, i):
        return items[:i] + items[i + 1:]

    for i in reversed(range(len(plan.get("data", ())))):
        if not attempt(data=without(plan["data"], i), data_fs=without(plan["data_fs"], i)):
            def with_data(objects, i=i):
                return {**plan, "data": plan["data"][:i] + [objects] + plan["data"][i + 1:]}

            plan = with_data(_reduce(plan["data"][i], lambda o: fails(with_data(o)), deadline))
    for i in reversed(range(len(plan.get("stages", ())))):
        if attempt(stages=without(plan["stages"], i)):
            continue

        def with_stage(i=i, **change):
            stages = list(plan["stages"])
            stages[i] = {**stages[i], **change}
            return {**plan, "stages": stages}

        ops = _reduce(plan["stages"][i]["ops"], lambda o: fails(with_stage(ops=o)), deadline)
        plan = with_stage(ops=ops)
        for word in list(plan["stages"][i]["options"]):
            o = {k: x for k, x in plan["stages"][i]["options"].items() if k != word}
            if time.monotonic() < deadline and fails(with_stage(options=o)):
                plan = with_stage(options=o)
        for change in ({"fs": "tmp0"}, {"keep": False}):
            if time.monotonic() < deadline and fails(with_stage(**change)):
                plan = with_stage(**change)
    for word in list(plan.get("options", ())):
        attempt(options={k: x for k, x in plan["options"].items() if k != word})
    if plan.get("data_fs"):
        attempt(data_fs=["tmp0"] * len(plan["data_fs"]))
    return plan


def shrink(plan, ops, fails, seconds=60):
    """@fails(plan, ops) runs a sequence and says whether it fails in the same way."""
    deadline = time.monotonic() + seconds
    plan = copy.deepcopy(plan)
    ops = _reduce(list(ops), lambda o: fails(plan, o), deadline)
    plan = _shrink_features(plan, lambda p: fails(p, ops), deadline)

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
    for objects in plan["lowers"] + plan.get("data", []) + [plan["upper"] or []]:
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
