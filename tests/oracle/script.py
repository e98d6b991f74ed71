# SPDX-License-Identifier: MIT
"""
A sequence as a text that people read and the oracle replays: one object or operation a line, each a
call with literal arguments.

    fs(['tmp0', 'tmp0'])
    options('redirect_dir=on,metacopy=on')
    layer(0, kind='file', p=b'a', mode=0o644, ...)
    stage('tmp0', 'redirect_dir=on', keep=True)
    staged(0, 'rename', p=b'd', to=b'e')
    mkdir(p=b'd', mode=0o755, who=(1000, 1000, ()))
"""

import ast

import features


def _literal(key, value):
    if key in ("mode", "umask") and isinstance(value, int):
        return oct(value)
    return repr(value)


def call(name, args, first=()):
    parts = [repr(x) for x in first]
    parts += ["%s=%s" % (k, _literal(k, x)) for k, x in args.items()]
    return "%s(%s)" % (name, ", ".join(parts))


def write(path, plan, ops, notes=()):
    with open(path, "w", encoding="ascii") as f:
        for line in notes:
            f.write("# " + line.encode("ascii", "backslashreplace").decode() + "\n")
        f.write(text(plan, ops))


def text(plan, ops):
    lines = [call("fs", {}, [plan["fs"]])]
    if plan.get("strictatime"):
        lines.append("strictatime()")
    if "options" in plan:
        lines.append(call("options", {}, [features.text(plan["options"])]))
    for i, objects in enumerate(plan["lowers"]):
        lines.append("")
        lines += [call("layer", o, [i]) for o in objects]
    for i, objects in enumerate(plan.get("data", ())):
        lines += ["", call("datafs", {}, [plan["data_fs"][i]])]
        lines += [call("data", o, [i]) for o in objects]
    for i, stage in enumerate(plan.get("stages", ())):
        lines += ["", call("stage", {"keep": stage["keep"]},
                           [stage["fs"], features.text(stage["options"])])]
        lines += [call("staged", args, [i, op]) for op, args in stage["ops"] or ()]
    lines.append("")
    if plan["upper"] is None:
        lines.append("noupper()")
    else:
        lines += [call("upper", o) for o in plan["upper"]]
    lines.append("")
    lines += [call(op, args) for op, args in ops]
    return "\n".join(lines) + "\n"


def read(path):
    """Returns (plan, ops)."""
    plan = {"fs": ["tmp0", "tmp0"], "lowers": [], "upper": []}
    ops = []
    with open(path, encoding="ascii") as f:
        tree = ast.parse(f.read())
    for statement in tree.body:
        call = statement.value
        args = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
        first = [ast.literal_eval(a) for a in call.args]
        name = call.func.id
        if name == "fs":
            plan["fs"] = first[0]
            plan["lowers"] = [[] for _ in first[0][1:]]
        elif name == "options":
            plan.update(options=features.words(first[0]), data=[], data_fs=[], stages=[])
        elif name == "datafs":
            plan["data"].append([])
            plan["data_fs"].append(first[0])
        elif name == "data":
            plan["data"][first[0]].append(args)
        elif name == "stage":
            plan["stages"].append({"fs": first[0], "options": features.words(first[1]), **args,
                                   "ops": []})
        elif name == "staged":
            plan["stages"][first[0]]["ops"].append((first[1], args))
        elif name == "layer":
            plan["lowers"][first[0]].append(args)
        elif name == "upper":
            plan["upper"].append(args)
        elif name == "noupper":
            plan["upper"] = None
        elif name == "strictatime":
            plan["strictatime"] = True
        else:
            ops.append((name, args))
    return plan, ops
