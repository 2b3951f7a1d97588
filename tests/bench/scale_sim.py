"""docs/SCALE.md's tables: study A on 1,000 nodes and 10^12 tokens, from measured figures and a latency-bandwidth model.

    python3 tests/bench/scale_sim.py                                   the tables (MEASURED below)
    python3 tests/bench/scale_sim.py --measure --bin build/bin --work build/forecast   measure here first (tests/bench/forecast.py makes
                                                                       the work folder; needs mpirun, mpicc, strace), then the tables
    ... --nodes 1000 --tokens 1e12 --cores 64 --fabric hdr             other assumptions

The simulation walks the rounds of the lane reduction as src/comm/lanes.c makes them (chunks of blocks, a message to every other rank per
chunk, two chunks in flight), with a node's ranks sharing its link. Published fabric figures are the vendors' link rates and usual MPI
latencies, nothing measured here.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys

# Measured on two cores of a virtual machine (Zen 4 kind, Open MPI 4.1.4, HDF5 1.10.8); --measure repeats it.
MEASURED = {
    "score_gflops_per_core_bf16": 290,  # 5,384 tokens/s of 109 MFLOP on 2 cores, 64 % of a large product's rate: tests/bench/forecast.py, "moe score bf16"
    "lane_reduce_floats": 10_000_000, "lane_reduce_ms_2_ranks": 8.0,  # docs/PERFORMANCE.md
    "disk_write_gb_per_s": 2.0, "disk_read_gb_per_s": 2.3,  # one process, local ext4
    "shard_mb_per_s": 17,  # text through moe-shard, one process
    "start_ops": {"score": {"rank0": {"project": 227, "system": 382, "other": 207, "missing": 205},
                            "rank1": {"project": 66, "system": 381, "other": 193, "missing": 201}},
                  "alone": {"project": 245, "system": 63, "other": 14, "missing": 110}},
}

# name: (GB/s per node, seconds per message). Published link rates; latencies of small MPI messages as vendors and MPI projects give them.
FABRICS = {
    "10 GbE": (1.25, 30e-6),
    "HDR-100": (12.5, 1.5e-6),
    "HDR": (25.0, 1.5e-6),
    "NDR": (50.0, 1.3e-6),
    "Slingshot-11": (25.0, 2.0e-6),
}

# Models of the plan: parameters, active in a token's forward pass, elements that train, experts' layers.
MODELS = {
    "OLMoE-1B-7B router (16 x 72 x 2048)": 16 * 72 * 2048,
    "Llama-3.2-3B LoRA r 128 on q,k,v,o": 28 * 128 * ((3072 + 3072) + 2 * (3072 + 1024) + (3072 + 3072)),
    "Llama-3.2-3B full": 3_212_749_824,
    "OLMoE-1B-7B full": 6_919_161_856,
}

BLOCK, STAGING = 65536, 32 << 20


def human(bytes_):
    for unit in ("B", "KB", "MB", "GB", "TB", "PB"):
        if abs(bytes_) < 1000 or unit == "PB":
            return f"{bytes_:.3g} {unit}"
        bytes_ /= 1000


def seconds(s):
    if s < 1:
        return f"{s * 1e3:.3g} ms"
    return f"{s:.3g} s" if s < 600 else f"{s / 60:.3g} min" if s < 7200 else f"{s / 3600:.3g} h" if s < 1e6 else f"{s / 86400:.3g} days"


def table(title, head, rows):
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    line = lambda row: "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |"
    print(f"\n### {title}\n")
    print(line(head))
    print("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    for row in rows:
        print(line(row))


# ---- 1. the lane reduction ----

def lane_reduce(n, ranks, per_node, fabric, memory_gb_per_s=39.4):
    """Seconds of mb_lanes_reduce + mb_lanes_allgather of n floats with one lane per rank, and bytes a rank keeps for it.

    Every rank owns n / ranks elements. A round: it receives the subtree sum of its next chunk from each other rank while it sends each of
    them theirs; the chunk before is added meanwhile. A node's link carries what its ranks exchange with other nodes."""
    if ranks == 1:
        return 0.0, 0
    gb, latency = FABRICS[fabric] if fabric in FABRICS else (memory_gb_per_s / 3, 5e-7)
    blocks = math.ceil(n / BLOCK)
    owned = math.ceil(blocks / ranks) * BLOCK
    fit = STAGING // (2 * 4 * BLOCK) // ranks
    chunk = min(BLOCK * max(1, min(fit, 4)), blocks * BLOCK)
    rounds = math.ceil(owned / chunk)
    owners = min(ranks, blocks)  # with fewer blocks than ranks some own nothing
    outside = max(0.0, 1 - (per_node - 1) / (ranks - 1)) if ranks > per_node else 0.0
    total, left = 0.0, min(owned, n)
    for _ in range(rounds):
        part = min(chunk, left)
        left -= part
        sent = 4 * part * (owners - 1)  # by one rank, to every owner but itself
        if outside > 0:
            wire = per_node * sent * outside / (gb * 1e9)
        else:
            wire = per_node * sent / (memory_gb_per_s / 3 * 1e9)
        added = 3 * 4 * part * (ranks - 1) * min(per_node, owners) / (memory_gb_per_s * 1e9)
        total += max(wire, added) + latency * (ranks - 1) * (1 if part else 0)
    gathered = 4 * n * (ranks - 1) / ranks
    link = gb * 1e9 if outside > 0 else memory_gb_per_s / 3 * 1e9
    total += per_node * gathered * (outside if outside > 0 else 1) / link + latency * math.ceil(math.log2(ranks))
    staging = 2 * 4 * (ranks - 1) * chunk
    lists = 24 * (ranks - 1) * ranks  # mb_lanes.send: (R - 1) x all subtree sums
    return total, staging + lists


def table_reduce(options):
    rows = []
    for name, n in MODELS.items():
        for nodes in (1, 16, 128, options.nodes):
            ranks = nodes * options.ranks_per_node
            if ranks < 2:
                continue
            time, kept = lane_reduce(n, ranks, options.ranks_per_node, options.fabric if nodes > 1 else "")
            rows.append([name, nodes, ranks, human(4 * n), seconds(time), human(kept)])
    table(f"Reduction and gathering of one step ({options.fabric}, {options.ranks_per_node} ranks a node, lanes = ranks)",
          ["trains", "nodes", "ranks", "gradient", "time", "buffers beside it, a rank"], rows)
    time, _ = lane_reduce(MEASURED["lane_reduce_floats"], 2, 2, "")
    print(f"\nCheck of the model: {MEASURED['lane_reduce_floats'] / 1e6:g} M floats on 2 ranks of one node: {seconds(time)}, measured "
          f"{MEASURED['lane_reduce_ms_2_ranks']} ms.")
    rows = []
    for fabric, (gb, latency) in FABRICS.items():
        row = [fabric, f"{gb:g} GB/s, {latency * 1e6:g} us"]
        for name in ("Llama-3.2-3B LoRA r 128 on q,k,v,o", "Llama-3.2-3B full"):
            row.append(seconds(lane_reduce(MODELS[name], 128 * options.ranks_per_node, options.ranks_per_node, fabric)[0]))
        rows.append(row)
    table("The same on 128 nodes by fabric (published rates)", ["fabric", "link, latency", "LoRA r 128", "full 3B"], rows)


# ---- 2. data and scoring ----

def table_shards(options):
    rows = []
    records = options.tokens / options.record_tokens
    for tokens in (1e8, 1e9, 4e9):
        count = math.ceil(options.tokens / tokens)
        bytes_ = tokens * 4 + 50 * tokens / options.record_tokens
        index = 58 * tokens / options.record_tokens
        rows.append([f"{tokens:.0e}", f"{count:,}", human(bytes_), human(bytes_ * count), human(index), seconds(4.2 * tokens / (MEASURED["shard_mb_per_s"] * 1e6))])
    table(f"Shards of {options.tokens:.0e} tokens, {options.record_tokens:g} tokens a record ({records:.3g} records)",
          ["tokens a shard", "shards", "one", "all", "index in memory of a rank that opens one", "one process makes one in"], rows)
    print(f"\nA rank that opened all shards as one list would keep {human(58 * records)} of index: not possible; a job (or array element) opens its own shards.")


def table_scoring(options):
    rows = []
    node = options.cores * MEASURED["score_gflops_per_core_bf16"] * 1e9 * options.core_share
    for name, flops in (("OLMoE-1B-7B, all 16 layers", 2 * (1.28e9 - 2 * 0.103e9)), ("the first 8 layers", (2 * (1.28e9 - 2 * 0.103e9)) / 2), ("the first 2", (2 * (1.28e9 - 2 * 0.103e9)) / 8)):
        rate = node / flops
        rows.append([name, f"{flops / 1e9:.3g}", f"{rate:,.0f}", seconds(options.tokens / rate / options.nodes), f"{options.tokens / rate / 3600:,.0f}"])
    table(f"Scoring {options.tokens:.0e} tokens on {options.nodes} nodes of {options.cores} cores ({node / 1e12:.3g} TFLOP/s a node assumed: "
          f"{MEASURED['score_gflops_per_core_bf16']} GFLOP/s a core measured on two cores, times {options.core_share})",
          ["scored by", "GFLOP a token", "tokens/s a node", "time", "node hours"], rows)
    rows = []
    for elements in (1000, 4000, 10000):
        tokens = options.tokens / elements
        parts = max(1, math.ceil(tokens / max(65536, tokens / 1024)))
        rows.append([f"{elements:,}", f"{tokens:.3g}", parts, f"{parts * min(elements, options.nodes):,}", f"{parts * elements:,}", seconds(tokens / parts / (node / (2 * 1.28e9)))])
    table("Scoring as an array, one shard list per element", ["elements", "tokens each", "parts each (files)", "files at one time", "files over the run", "a restart repeats at most"], rows)


def table_scores(options):
    rows = []
    records = options.tokens / options.record_tokens
    for name, columns, layered, layers in (("good_mass alone, 16 layers", 1, 1, 16), ("good_mass, length, random", 3, 1, 16), ("all eight, 16 layers", 8, 3, 16)):
        each = 8 * columns + 4 * layered * layers + 42
        rows.append([name, each, human(each * records), seconds(2 * each * records / (MEASURED["disk_write_gb_per_s"] * 1e9)), human(58 * records), human(50 * records + 40 * records / 4000)])
    table(f"Score tables of {records:.3g} records", ["scores", "bytes a record", "one table", "joined by one process in", "index to join it", "columns moe-select keeps on every rank"], rows)


def table_select(options):
    rows = []
    records = options.tokens / options.record_tokens
    for groups in (1, 16, 128):
        for ranks in (4, 64, 1000):
            latency = FABRICS[options.fabric][1]
            rounds = 192
            time = rounds * 2 * math.ceil(math.log2(ranks)) * (latency + 8 * groups / (FABRICS[options.fabric][0] * 1e9))
            sort = records / ranks * math.log2(max(2, records / ranks)) * 8e-9
            rows.append([groups, f"{ranks:,}", rounds, 8 * groups, seconds(time), seconds(sort), human(0.05 * records * 56)])
    table(f"Exact top 5 % of {records:.3g} records", ["sources", "ranks", "rounds at most", "bytes a rank sends a round", "rounds take", "sorting before", "gathered on every rank"], rows)


# ---- 3. files ----

def table_metadata(options):
    ops = MEASURED["start_ops"]
    total = lambda part: sum(part.values())
    rows = []
    for ranks in (1000, 4000, 64000):
        shared = ops["score"]["rank1"]["project"] * (ranks - 1) + ops["score"]["rank0"]["project"]
        libraries = (ops["score"]["rank1"]["system"] + ops["score"]["rank1"]["missing"]) * ranks
        rows.append([f"{ranks:,}", f"{shared:,}", seconds(shared / options.metadata), f"{libraries:,}", seconds(libraries / options.metadata)])
    table(f"Metadata operations when a job of R ranks starts (a server of {options.metadata:,.0f} operations/s assumed)",
          ["ranks", "on the project's file system", "take", "on libraries, if those lie on it too", "take"], rows)
    alone = ops["alone"]
    print(f"\nMeasured per process (strace, successful and failed calls that name a file): one process without MPI {total(alone)} ({alone['project']} of them on "
          f"the project's files); under MPI rank 0 {total(ops['score']['rank0'])}, every other rank {total(ops['score']['rank1'])} ({ops['score']['rank1']['project']} on the project's files).")
    rows = []
    for elements in (1000, 4000):
        rows.append([f"{elements:,}", f"{elements / 2:,.0f}", f"{3 * elements:,}", seconds(3 * elements / options.metadata), f"{elements * alone['project']:,}", seconds(elements * alone["project"] / options.metadata)])
    table("Array elements running at one time", ["elements", "renames/s of progress.json (every 2 s)", "leases: files made and removed", "take", "operations at start", "take"], rows)


def table_checkpoints(options):
    rows = []
    for name, n in MODELS.items():
        state = 12 * n
        rows.append([name, human(state), seconds(state / (MEASURED["disk_write_gb_per_s"] * 1e9)), seconds(state / (options.parallel_gb_per_s * 1e9)), human(3 * state), human(state)])
    table(f"Checkpoints to resume from (one writer at {MEASURED['disk_write_gb_per_s']} GB/s; all nodes at once at {options.parallel_gb_per_s:g} GB/s for comparison)",
          ["trains", "state", "written by rank 0", "if all wrote", "disk with 2 kept", "copy in rank 0's memory"], rows)


def table_limits(options):
    rows = []
    for ranks in (64, 512, 4000):
        _, kept = lane_reduce(10_000_000, ranks, options.ranks_per_node, options.fabric)
        rows.append([f"{ranks:,}", f"{ranks:,}", f"{ranks * 8 * 2048:,}", human(kept)])
    table("What ranks ask of a training step (a micro-batch of 8 records of 2,048 tokens a rank)", ["ranks", "lanes and micro-batches at least", "tokens a step", "buffers of the reduction, a rank"], rows)


# ---- 4. measuring ----

MPIRUN = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1"]


def run(command, **extra):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=dict(os.environ, OMP_NUM_THREADS="1", **extra))
    if done.returncode != 0:
        raise RuntimeError(" ".join(map(str, command)) + "\n" + done.stdout[-1500:] + done.stderr[-1500:])
    return done.stdout + done.stderr


def count_files(path, roots):
    """Calls of a strace log that name a file, by where it lies."""
    counts = dict(project=0, system=0, other=0, missing=0)
    with open(path, encoding="utf-8", errors="replace") as log:
        for line in log:
            name = re.search(r'"([^"]+)"', line)
            if "(" not in line or not name:
                continue
            kind = "project" if any(name[1].startswith(root) for root in roots) or not name[1].startswith("/") else "system" if re.match(r"/(usr|lib|etc|opt)", name[1]) else "other"
            counts["missing" if "ENOENT" in line and kind != "project" else kind] += 1
    return counts


def read_counts(stem, rank):
    with open(f"{stem}.{rank}", encoding="utf-8") as file:
        return {name: (int(calls), int(bytes_)) for name, calls, bytes_ in (line.split() for line in file)}


def measure(options):
    work = os.path.abspath(options.work)
    program = lambda name: os.path.join(options.bin, name)
    out = os.path.join(work, "scale")
    os.makedirs(out, exist_ok=True)
    library = os.path.join(out, "count.so")
    run(["mpicc", "-shared", "-fPIC", "-O2", os.path.join(os.path.dirname(__file__), "mpi_count.c"), "-o", library])
    score = [program("moe-score"), f"model.path={work}/model-demo-trash/model", "score.scores=good_mass,length,random", f"dataset.path={work}/shard-few/shard.h5", "run.force=true"]
    train = [program("moe-train"), f"model.path={work}/model-demo/model", f"dataset.path={work}/shard-short/shard.h5", "training.batch_size=4",
             "training.gradient_accumulation_steps=4", "training.lanes=4", "run.force=true"]
    trace = lambda name: ["strace", "-f", "-e", "trace=%file", "-o", os.path.join(out, name)]
    roots = [os.getcwd(), work]
    run([*MPIRUN, "-np", 1, *trace("rank0"), *score, f"output.dir={out}/s2", ":", "-np", 1, *trace("rank1"), *score, f"output.dir={out}/s2"])
    run([*trace("alone"), *score, f"output.dir={out}/s1"])
    MEASURED["start_ops"] = {"score": {rank: count_files(os.path.join(out, rank), roots) for rank in ("rank0", "rank1")}, "alone": count_files(os.path.join(out, "alone"), roots)}
    rows = []
    for ranks in (1, 2, 4):
        counted = lambda name: ["-x", f"LD_PRELOAD={library}", "-x", f"MB_COUNT={out}/{name}"]
        per_step = {}
        for steps in (4, 8):
            run([*MPIRUN, "-np", ranks, *counted(f"t{steps}"), *train, f"training.max_steps={steps}", f"output.dir={out}/t{ranks}-{steps}"])
        first, second = read_counts(f"{out}/t4", 0), read_counts(f"{out}/t8", 0)
        per_step = {name: ((second[name][0] - first[name][0]) / 4, (second[name][1] - first[name][1]) / 4) for name in first}
        run([*MPIRUN, "-np", ranks, *counted("sel"), program("moe-select"), "select", f"scores.path={options.scores}", "select.selection_percentage=0.05", f"dataset.inputs={options.inputs}",
             f"tokenizer.path={work}/tok", "run.force=true", f"output.dir={out}/sel{ranks}"])
        chosen = read_counts(f"{out}/sel", 0)
        rows.append([ranks, *(f"{per_step[name][0]:g} / {human(per_step[name][1])}" for name in ("allreduce", "allgather", "isend", "bcast")),
                     *(f"{chosen[name][0]} / {human(chosen[name][1])}" for name in ("allreduce", "allgather", "isend"))])
    print("Measured here:", json.dumps(MEASURED["start_ops"]))
    table("Calls / bytes of rank 0, counted: a training step (3.94 M elements, 4 lanes) and a selection",
          ["ranks", "step: allreduce", "allgather", "isend", "bcast", "select: allreduce", "allgather", "isend"], rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--bin", default="build/bin")
    parser.add_argument("--work", default="build/forecast")
    parser.add_argument("--scores", default="", help="--measure: a score table for counting a selection's messages")
    parser.add_argument("--inputs", default="", help="--measure: dataset.inputs of that table")
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--ranks-per-node", type=int, default=4)
    parser.add_argument("--cores", type=int, default=64)
    parser.add_argument("--core-share", type=float, default=0.5, help="what a core of a full node keeps of one that is measured alone")
    parser.add_argument("--tokens", type=float, default=1e12)
    parser.add_argument("--record-tokens", type=float, default=1000)
    parser.add_argument("--fabric", choices=FABRICS, default="HDR")
    parser.add_argument("--metadata", type=float, default=20000, help="operations/s of the file system's metadata server")
    parser.add_argument("--parallel-gb-per-s", type=float, default=50)
    options = parser.parse_args()
    if options.measure:
        measure(options)
    for part in (table_shards, table_scoring, table_scores, table_select, table_reduce, table_limits, table_checkpoints, table_metadata):
        part(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
