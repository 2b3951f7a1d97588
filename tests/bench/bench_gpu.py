"""Our programs beside PyTorch + transformers (gpu_peer.py) on one GPU: same machine, run, random weights, tokens and operations counted
(gpu_shapes.py). Works from the source tree or from a bundle (`make bundle`).

    bench_gpu.py --out DIR [--only WORDS] [--seconds 530] [--backend cuda] [--tiny]

Rows in order of importance; each has a time limit, what fails or no longer fits in --seconds is named with its reason. --only takes rows
whose name holds all the words, separated by commas for several: --only 'olmoe score,llama lora'.

  olmoe score     router masses of all layers, records of 2,048 tokens, no head; with the largest difference of a record's mass
  olmoe router    training of the routers alone, 4,096 tokens a step
  llama lora, llama full, qwen lora, qwen full     8,192 tokens a step
  llama generate  8 prompts, 128 tokens each, greedy
  olmoe tile      olmoe score again with larger tiles of ours

Ours is timed by its own clock: tokens per second of the scoring pass, steps 4 and on of training (the process is ended then; nothing is
saved). The peer's best variant counts; all are listed. Memory: ours what the GPU held more than before (sampled), theirs
torch.cuda.max_memory_allocated, which leaves out the allocator's own slack and the CUDA context.
Writes DIR/bench-gpu.json and DIR/bench-gpu.md. --timeline measures something else: in which part of the time the GPU worked, and on which
kernels, for `olmoe router`, `llama lora` and `olmoe score` (timeline.c through CUPTI where its headers are; else kernel times by ncu against
the step's time without it); writes DIR/timeline.txt and timeline.json. --tiny with --backend cpu runs all of it on a machine without a GPU.
"""

import argparse
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import gpu_shapes

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


class Skipped(Exception):
    pass


class MemorySampler(threading.Thread):
    """Most bytes the GPU held beyond what it held at the start; 0 where nobody tells."""

    def __init__(self):
        super().__init__(daemon=True)
        self.over, self.most = threading.Event(), 0
        self.before = self.read()

    def read(self):
        try:
            text = subprocess.run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=10).stdout
            return int(text.split()[0]) << 20
        except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
            return None

    def run(self):
        while self.before is not None and not self.over.wait(0.2):
            now = self.read()
            if now is not None:
                self.most = max(self.most, now - self.before)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.join()


class Bench:
    def __init__(self, options):
        self.options, self.tiny, self.out, self.work = options, options.tiny, options.out, options.work
        self.began = time.monotonic()
        self.rows, self.skipped, self.versions, self.ceilings, self.made = [], [], {}, {}, {}
        self.length = 64 if self.tiny else 2048
        self.environment = dict(os.environ, HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false", MB_COMM="self",
                                GOMP_SPINCOUNT="10000", PYTHONUNBUFFERED="1")
        self.log = open(self.out / "bench-gpu.log", "a")

    # ---- running ----

    def left(self):
        return self.options.seconds - (time.monotonic() - self.began)

    def limit(self, seconds):
        """A time limit that keeps to the whole budget, or no run at all."""
        if self.left() < 10:
            raise Skipped("no time left")
        return min(seconds, self.left())

    def program(self, name):
        if (ROOT / "run").exists():
            return [ROOT / "run", name]
        return [(self.options.bin / name) if name.startswith("moe-") else self.options.bin.parent / "bench" / name]

    def call(self, command, seconds):
        command = [str(word) for word in command]
        self.log.write("$ " + " ".join(command) + "\n")
        self.log.flush()
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=self.environment, cwd=ROOT, timeout=self.limit(seconds))
        except OSError as error:
            return "", str(error)
        except subprocess.TimeoutExpired as late:
            said = (late.stdout or b"").decode(errors="replace") if isinstance(late.stdout, bytes) else (late.stdout or "")
            self.log.write(said + "\nended at its time limit\n")
            return said, "its time limit"
        self.log.write(done.stdout + done.stderr + "\n")
        self.log.flush()
        if done.returncode != 0:
            lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
            return done.stdout, f"exit {done.returncode}: {' / '.join(lines[-2:])[-300:]}"
        return done.stdout + done.stderr, None

    def must(self, command, seconds=120):
        said, failed = self.call(command, seconds)
        if failed:
            raise Skipped(f"{Path(command[0] if len(command) < 2 else command[1]).name}: {failed}")
        return said

    def peer(self, task, seconds, **arguments):
        """Rows of a task of gpu_peer.py, those that were measured before a time limit too."""
        command = [sys.executable, HERE / "gpu_peer.py", task] + (["--tiny"] if self.tiny else [])
        for key, value in arguments.items():
            command += [f"--{key}", value]
        said, failed = self.call(command, seconds)
        rows = [json.loads(line[4:]) for line in said.splitlines() if line.startswith("ROW ")]
        for line in said.splitlines():
            if line.startswith("VERSIONS "):
                self.versions.update(json.loads(line[9:]))
        if failed:
            rows.append(dict(variant=f"{task} (rest)", failed=failed))
        return rows

    # ---- inputs ----

    def shard(self):
        """Records of exactly `length` tokens of made-up words, and the tokenizer they were cut with."""
        folder = self.work / "shard"
        if not (folder / "shard.h5").exists():
            rng, count = random.Random(0), 24 if self.tiny else 512
            words = ["".join(rng.choice("abcdefghijklmnop") for _ in range(5)) for _ in range(3000)]
            text = self.work / "words.jsonl"
            with open(text, "w") as out:
                for _ in range(count):
                    out.write(json.dumps({"text": " ".join(rng.choice(words) for _ in range(self.length))}) + "\n")
            few = self.work / "few.jsonl"
            few.write_text("".join(open(text).readlines()[:64]))
            self.must(self.program("moe-shard") + ["tokenizer", f"dataset.inputs=t={few}", "tokenizer.vocab_size=2048", f"output.dir={self.work}/tokenizer"])
            self.must(self.program("moe-shard") + ["build", f"dataset.inputs=t={text}", f"dataset.max_length={self.length}", "dataset.append_eos=false",
                                                   f"tokenizer.path={self.work}/tokenizer", f"output.dir={folder}"])
        return folder / "shard.h5"

    def model(self, name):
        """A folder of random weights; only one is kept at a time."""
        if name not in self.made:
            self.shard()
            for other in self.made:
                shutil.rmtree(self.work / other, ignore_errors=True)
            self.made.clear()
            rows = self.peer("make", 150, shape=name, model=self.work / name)
            if "bytes" not in rows[0]:
                raise Skipped(f"no weights: {rows[0].get('failed')}")
            for file in (self.work / "tokenizer").glob("*.json"):
                if file.name != "done.json":
                    shutil.copy(file, self.work / name)
            print(f"  {gpu_shapes.NAMES[name]}: {rows[0]['bytes'] / 1e9:.2f} GB written in {rows[0]['seconds']:.1f} s", flush=True)
            self.made[name] = True
        return self.work / name

    def measure_ceilings(self):
        rows = self.peer("ceiling", 90)
        if "bf16_flops" in rows[0]:
            self.ceilings["torch"] = rows[0]
        path = self.out / "ceiling.json"
        _, failed = self.call(self.program("roofline") + ["--backend", self.options.backend, "--only", "none of them", "--json", path]
                              + (["--tiny"] if self.tiny else []), 90)
        if failed:
            self.skipped.append(("our ceiling", failed))
        else:
            ours = json.loads(path.read_text())
            self.ceilings["ours"] = {key: ours[key] for key in ("bf16_flops", "copy_bytes_per_s", "describe", "cube")}
            path.unlink()
        for who, what in self.ceilings.items():
            print(f"ceiling ({who}): bf16 {what['bf16_flops'] / 1e12:.2f} TFLOP/s of {what['cube']} cubed, copy {what['copy_bytes_per_s'] / 1e9:.0f} GB/s", flush=True)

    def ceiling(self):
        return max((what["bf16_flops"] for what in self.ceilings.values()), default=0)

    # ---- rows ----

    def row(self, name, shape, kind, ours, theirs, **more):
        """ours: dict(rate, peak_bytes); theirs: rows of the peer."""
        worked = [r for r in theirs if "rate" in r]
        best = max(worked, key=lambda r: r["rate"], default=None)
        flops = gpu_shapes.flops_per_token(shape, kind, self.length) if kind else 0
        row = dict(name=name, unit="tokens/s", ours=ours, peer=best, variants=theirs, flops_per_token=flops, **more)
        for who, what in (("ours", ours), ("peer", best)):
            if what and flops:
                row[f"{who}_tflops"] = what["rate"] * flops / 1e12
                row[f"{who}_share"] = what["rate"] * flops / self.ceiling() if self.ceiling() else None
        if ours and best:
            row["ratio"] = ours["rate"] / best["rate"]
        self.rows.append(row)
        print("  " + " | ".join(cell.strip() for cell in cells(row)), flush=True)
        for r in theirs:
            print(f"      {r['variant']:24s} " + (f"{r['rate']:12.0f} tokens/s" if "rate" in r else f"- {r.get('failed')}"), flush=True)
        self.save()

    def guarded(self, work):
        """What ours gives, or the reason it gives nothing."""
        try:
            with MemorySampler() as memory:
                result = work()
            result["peak_bytes"] = memory.most
            return result
        except Skipped as reason:
            print(f"    ours: {reason}", flush=True)
            self.skipped.append(("ours", str(reason)))
            return None

    def ours_score(self, name, tile=None):
        folder = self.work / "score"
        shutil.rmtree(folder, ignore_errors=True)
        command = self.program("moe-score") + [f"backend={self.options.backend}", "score.scores=good_mass", "model.trash_expert_ratio=0.125",
                                               f"model.path={self.model(name)}", "model.dtype=bf16", f"dataset.path={self.shard()}", f"output.dir={folder}"]
        said = self.must(command + ([f"score.tile_tokens={tile}"] if tile else []), 150)
        return dict(rate=float(re.findall(r"\(([0-9.]+) tokens/s\)", said)[-1]))

    def agreement(self, masses):
        """Largest difference of a record's mass, beside how much masses differ among themselves."""
        try:
            import h5py

            theirs = json.loads(masses.read_text())
            with h5py.File(self.work / "score" / "scores.h5") as f:
                ours = f["scores/good_mass"][: len(theirs)].tolist()
            return dict(records=len(theirs), largest_difference=max(abs(a - b) for a, b in zip(ours, theirs)), spread=statistics.pstdev(theirs),
                        mean_ours=statistics.mean(ours), mean_peer=statistics.mean(theirs))
        except Exception as error:
            return dict(failed=f"{type(error).__name__}: {error}")

    def score(self, name):
        shape, masses = gpu_shapes.shape_of(name, self.tiny), self.work / "masses.json"
        self.model(name)
        ours = self.guarded(lambda: self.ours_score(name))
        theirs = self.peer("score", 200, model=self.model(name), shard=self.shard(), records=8 if self.tiny else 64, batch=2 if self.tiny else 4, masses=masses,
                           variants="eager,grouped_mm,batched_mm,grouped_mm+compile")
        same = self.agreement(masses) if ours and masses.exists() else None
        self.row(f"{name} score", shape, "score", ours, theirs, agreement=same)
        if same:
            print(f"      masses of {same.get('records')} records: largest difference {same.get('largest_difference', -1):.2e}, their own spread "
                  f"{same.get('spread', -1):.2e} {same.get('failed', '')}", flush=True)

    def tile(self, name):
        ours = self.guarded(lambda: self.ours_score(name, 128 if self.tiny else 32768))
        self.row(f"{name} tile", gpu_shapes.shape_of(name, self.tiny), "score", ours, [])

    def ours_train(self, name, kind, batch, steps):
        """Steps by their own times in metrics.jsonl; the process is ended after enough of them."""
        folder = self.work / "train"
        shutil.rmtree(folder, ignore_errors=True)
        extra = {"full": [], "router": ["training.trainable=router"],
                 "lora": ["training.peft_mode=lora", "training.lora.r=16", "training.lora.lora_alpha=32"]}[kind]
        command = self.program("moe-train") + [f"backend={self.options.backend}", f"model.path={self.model(name)}", f"dataset.path={self.shard()}",
                                               "training.objective=lm", "model.dtype=bf16", f"training.batch_size={batch}", "training.max_steps=100000",
                                               "training.gradient_accumulation_steps=1", "training.learning_rate=1e-4", "training.weight_decay=0.01",
                                               "training.logging_steps=1", "training.save_minutes=0", f"output.dir={folder}", *extra]
        self.log.write("$ " + " ".join(map(str, command)) + "\n")
        self.log.flush()
        stop, lines = time.monotonic() + self.limit(120), []
        process = subprocess.Popen([str(word) for word in command], stdout=self.log, stderr=self.log, env=self.environment, cwd=ROOT)
        try:
            while process.poll() is None and time.monotonic() < stop and len(lines) < steps + 3:
                time.sleep(0.1)
                if (folder / "metrics.jsonl").exists():
                    lines = (folder / "metrics.jsonl").read_text().splitlines()
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        steps_seen = [json.loads(line) for line in lines if line.endswith("}")]
        if len(steps_seen) < 5:
            raise Skipped(f"moe-train: {len(steps_seen)} steps seen, exit {process.returncode}; see bench-gpu.log")
        first, last = steps_seen[2], steps_seen[-1]
        shutil.rmtree(folder, ignore_errors=True)
        took, n = max(last["time"] - first["time"], 1e-3), len(steps_seen) - 3
        return dict(rate=(last["tokens"] - first["tokens"]) / took, steps=n, step_seconds=took / n, loss=last.get("loss"))

    def train(self, name, kind):
        shape = gpu_shapes.shape_of(name, self.tiny)
        batch, steps = 2 if name == "olmoe" else 4, 8 if self.tiny else 20
        self.model(name)
        ours = self.guarded(lambda: self.ours_train(name, kind, batch, steps))
        arguments = dict(model=self.model(name), shard=self.shard(), kind=kind, batch=batch, steps=3 if self.tiny else 10)
        variants = "eager,grouped_mm,grouped_mm+compile" if name == "olmoe" else "eager,compile"
        theirs = self.peer("train", 120, variants=variants, **arguments)
        if kind == "full":
            theirs += self.peer("train", 90, variants=variants, precision="autocast", **arguments)
        self.row(f"{name} {kind}", shape, kind, ours, theirs)

    def generate(self, name):
        folder, prompts = self.work / "generate", self.work / "prompts.jsonl"
        batch, new = (2, 8) if self.tiny else (8, 128)
        self.model(name)
        texts = [json.loads(line)["text"] for line in open(self.work / "few.jsonl")]
        prompts.write_text("".join(json.dumps({"prompt": text[:100]}) + "\n" for text in texts[:batch]))

        def ours():
            shutil.rmtree(folder, ignore_errors=True)
            said = self.must(self.program("moe-infer") + ["generate", f"backend={self.options.backend}", f"model.path={self.model(name)}", "model.dtype=bf16",
                                                          f"generate.inputs={prompts}", f"generate.max_new_tokens={new}", "generate.ignore_eos=true",
                                                          f"output.dir={folder}"])
            return dict(rate=float(re.findall(r"\(([0-9.]+) tokens/s\)", said)[-1]))

        mine = self.guarded(ours)
        theirs = self.peer("generate", 60, model=self.model(name), shard=self.shard(), batch=batch, new=new)
        self.row(f"{name} generate", gpu_shapes.shape_of(name, self.tiny), None, mine, theirs)

    # ---- the timeline ----

    def recorder(self):
        """timeline.c, compiled against the CUPTI that is here; None (and why) where there is none."""
        import glob
        import site

        places = [Path(p) for p in (os.environ.get("CUDA_HOME", "/usr/local/cuda"), "/usr/local/cuda/extras/CUPTI",
                                    *[hit for folder in site.getsitepackages() for hit in glob.glob(folder + "/nvidia/cu*")],
                                    *[hit for folder in site.getsitepackages() for hit in glob.glob(folder + "/nvidia/cuda_cupti")])]
        cuda = os.environ.get("CUDA_HOME", "/usr/local/cuda") + "/include"
        why = "no cupti.h beside a libcupti"
        for place in places:
            for library in sorted(p for folder in ("lib64", "lib", "targets/x86_64-linux/lib") for p in (place / folder).glob("libcupti.so*")):
                if not (place / "include" / "cupti.h").exists():
                    continue
                out = self.work / "timeline.so"
                _, why = self.call([os.environ.get("CC", "gcc"), "-O2", "-shared", "-fPIC", f"-I{place}/include", f"-I{cuda}", HERE / "timeline.c", library,
                                    f"-Wl,-rpath,{library.parent}", "-o", out], 60)
                if not why:
                    return out
        print(f"  timeline.c is not used: {why}", flush=True)
        return None

    def short_run(self, name, kind, steps):
        """A command of few steps that ends by itself and writes little."""
        folder = self.work / "short"
        shutil.rmtree(folder, ignore_errors=True)
        common = [f"backend={self.options.backend}", f"model.path={self.model(name)}", "model.dtype=bf16", f"dataset.path={self.shard()}", f"output.dir={folder}"]
        if kind == "score":
            return self.program("moe-score") + common + ["score.scores=good_mass", "model.trash_expert_ratio=0.125"]
        extra = {"router": ["training.trainable=router"], "lora": ["training.peft_mode=lora", "training.lora.r=16", "training.lora.lora_alpha=32"]}[kind]
        return self.program("moe-train") + common + ["training.objective=lm", f"training.batch_size={2 if name == 'olmoe' else 4}", f"training.max_steps={steps}",
                                                     "training.gradient_accumulation_steps=1", "training.logging_steps=1", "training.save=delta",
                                                     "training.save_minutes=0", *extra]

    def one_timeline(self, name, kind, library):
        import timeline

        title, file = f"{name} {kind}", self.work / "timeline.csv"
        file.unlink(missing_ok=True)
        if library:
            self.environment.update(CUDA_INJECTION64_PATH=str(library), MB_TIMELINE_FILE=str(file))
            try:
                self.must(self.short_run(name, kind, 10), 150)
            finally:
                for key in ("CUDA_INJECTION64_PATH", "MB_TIMELINE_FILE"):
                    self.environment.pop(key)
            records, seconds = timeline.read_cupti(file) if file.exists() else [], None
        else:
            if kind == "score":
                raise Skipped("ncu cannot tell where a tile begins")
            seconds = self.ours_train(name, kind, 2 if name == "olmoe" else 4, 8)["step_seconds"]
            profiler = ["ncu", "--target-processes", "all", "--clock-control", "none", "--cache-control", "none", "--csv", "--print-units", "base",
                        "--metrics", "gpu__time_duration.sum"]
            file.write_text(self.must(profiler + self.short_run(name, kind, 5), 240))
            records = timeline.read_ncu(file)
        if not records:
            raise Skipped("nothing recorded")
        found = timeline.summarise(records, wall_seconds=seconds)
        return timeline.text_of(title + ("" if library else " (ncu)"), found), {title: found}

    def timelines(self):
        everything, text, library = {}, "", self.recorder()
        for name, kind in (("olmoe", "router"), ("olmoe", "score"), ("llama", "lora")):
            if self.options.only and f"{name} {kind}" not in self.options.only:
                continue
            try:
                said, found = self.one_timeline(name, kind, library)
                everything.update(found)
            except Exception as error:
                said = f"{name} {kind}: not recorded: {error}\n"
            print(said, flush=True)
            text += said + "\n"
        (self.out / "timeline.txt").write_text(text)
        (self.out / "timeline.json").write_text(json.dumps(everything, indent=1) + "\n")

    # ---- the run ----

    def run(self):
        everything = [("olmoe score", lambda: self.score("olmoe")), ("olmoe router", lambda: self.train("olmoe", "router")),
                      ("llama lora", lambda: self.train("llama", "lora")), ("llama full", lambda: self.train("llama", "full")),
                      ("qwen lora", lambda: self.train("qwen", "lora")), ("qwen full", lambda: self.train("qwen", "full")),
                      ("llama generate", lambda: self.generate("llama")), ("olmoe tile", lambda: self.tile("olmoe"))]
        wanted = [text.split() for text in self.options.only.split(",")] if self.options.only else [[]]
        for name, work in everything:
            if not any(all(word in name for word in words) for words in wanted):
                continue
            print(f"{name} ({self.left():.0f} s left)", flush=True)
            try:
                work()
            except Skipped as reason:
                print(f"  skipped: {reason}", flush=True)
                self.skipped.append((name, str(reason)))
            except Exception as error:  # one broken row must not cost the others
                print(f"  failed: {type(error).__name__}: {error}", flush=True)
                self.skipped.append((name, f"{type(error).__name__}: {error}"))
        self.save()

    def save(self):
        report = dict(date=time.strftime("%Y-%m-%d"), tiny=self.tiny, backend=self.options.backend, length=self.length, ceilings=self.ceilings,
                      versions=self.versions, seconds=time.monotonic() - self.began, skipped=self.skipped, rows=self.rows)
        (self.out / "bench-gpu.json").write_text(json.dumps(report, indent=1) + "\n")
        (self.out / "bench-gpu.md").write_text(table(report))


def cells(row):
    ours, peer, same = row["ours"], row["peer"], row.get("agreement") or {}

    def number(value, pattern):
        return format(value, pattern) if value is not None else "-"

    def both(key, scale, pattern, unit=""):
        a, b = row.get(f"ours_{key}"), row.get(f"peer_{key}")
        return f"{number(a * scale if a is not None else None, pattern)} / {number(b * scale if b is not None else None, pattern)}{unit}"

    memory = " / ".join(number(what["peak_bytes"] / 1e9, ".1f") if what and what.get("peak_bytes") else "-" for what in (ours, peer))
    return [row["name"], number(ours and ours["rate"], ",.0f"), f"{number(peer and peer['rate'], ',.0f')} ({peer['variant']})" if peer else "-",
            number(row.get("ratio"), ".2f"), both("tflops", 1, ".1f"), both("share", 100, ".0f", " %"), memory,
            f"{same['largest_difference']:.1e}" if "largest_difference" in same else ""]


def table(report):
    lines = [f"ceiling ({who}): bf16 {what['bf16_flops'] / 1e12:.1f} TFLOP/s, copy {what['copy_bytes_per_s'] / 1e9:.0f} GB/s ({what.get('device') or what.get('describe')})  "
             for who, what in report["ceilings"].items()]
    lines += [f"versions: {', '.join(f'{k} {v}' for k, v in report['versions'].items())}; records of {report['length']} tokens; {report['date']}", "",
              "| row | ours, tokens/s | peer's best, tokens/s | ratio | TFLOP/s, ours / peer | of the ceiling | GPU memory, GB | masses differ by at most |",
              "|---|---|---|---|---|---|---|---|"]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in report["rows"]]
    lines += [""] + [f"- {row['name']}, {r['variant']}: " + (f"{r['rate']:,.0f} tokens/s" if "rate" in r else f"does not run: {r.get('failed')}")
                     for row in report["rows"] for r in row["variants"]]
    lines += [f"- not measured: {name}: {reason}" for name, reason in report["skipped"]]
    return "\n".join(lines) + "\n"


def work_folder():
    """Memory where there is room for the largest model, else the disk."""
    shm = Path("/dev/shm")
    return shm if shm.is_dir() and shutil.disk_usage(shm).free > 24 << 30 else Path("/tmp")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/bench/gpu"))
    parser.add_argument("--bin", type=Path, default=ROOT / "build/bin", help="programs, where this is no bundle")
    parser.add_argument("--work", type=Path, help="room for models and runs; default /dev/shm or /tmp; removed at the end")
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--only", default="")
    parser.add_argument("--seconds", type=float, default=530)
    parser.add_argument("--timeline", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    options.work = options.work or work_folder() / f"mb-bench-{os.getpid()}"
    options.work, options.out, options.bin = options.work.resolve(), options.out.resolve(), options.bin.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(options)
    try:
        if options.timeline:
            bench.timelines()
            return
        bench.measure_ceilings()
        bench.run()
    finally:
        shutil.rmtree(options.work, ignore_errors=True)
    print(f"\n{table(json.loads((options.out / 'bench-gpu.json').read_text()))}")


if __name__ == "__main__":
    main()
