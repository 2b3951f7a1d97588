#!/usr/bin/env bash
# shellcheck disable=SC2046,SC2038
# The house rules as tests (TAP): layers, sizes, names, words, scripts, static analysis, documented keys.
# Usage: tests/lint/run.sh BUILD
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
build=${1:-build}
number=0 bad=0

# result NAME REPORT: passes when the report is empty.
result() {
    number=$((number + 1))
    if [ -z "$2" ]; then
        echo "ok $number - $1"
    else
        bad=$((bad + 1))
        echo "not ok $number - $1"
        printf '%s\n' "$2" | head -25 | sed 's/^/# /'
    fi
}
skip() { number=$((number + 1)); echo "ok $number - $1 # SKIP $2"; }

sources() { find src -name '*.c' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | sort; }

# A folder includes only from folders of a lower number, and its own (DESIGN: layers).
layers() {
    sources | xargs grep -H -o -E '^#include "[a-z0-9]+/' | awk -F'[:"/]' '
        BEGIN { n = split("base:0 tensor:1 config:1 text:1 ops:2 comm:3 store:4 model:5 learn:6 choose:6 measure:6 serve:6 stage:7", a, " ")
                for (i = 1; i <= n; i++) { split(a[i], b, ":"); rank[b[1]] = b[2] } }
        { split($0, file, ":"); split(file[1], part, "/"); from = part[2]
          match($0, /"[a-z0-9]+\//); to = substr($0, RSTART + 1, RLENGTH - 2)
          if (!(to in rank)) print file[1] " includes unknown folder " to
          else if (from != to && rank[to] >= rank[from]) print file[1] " includes " to "/" }'
    grep -l -E 'include [<"]hdf5' $(sources) | grep -v -E '^src/store/h5[^/]*$'
    grep -l -E 'include [<"]libconfig' $(sources) | grep -v -E '^src/config/'
    grep -l -E 'include [<"]mpi.h' $(sources) | grep -v -E '^src/comm/'
    grep -l -E 'include [<"](cuda|cublas)' $(sources) | grep -v -E '^src/ops/cuda/'
    grep -l -E 'include [<"](dnnl|cblas|openblas)' $(sources) | grep -v -E '^src/ops/'
    grep -l '#include "config/' $(sources) | grep -v -E '^src/(config|stage)/'
}
result "folders include only lower layers" "$(layers)"

result "base names are unique" "$(find src -name '*.c' ! -path 'src/ops/*/*' -printf '%f\n' | sort | uniq -d)"
result "C files have at most 800 lines" "$(sources | xargs wc -l | awk '$2 != "total" && $1 > 800 {print $2 ": " $1 " lines"}')"
result "mains have at most 200 lines" "$(wc -l src/stage/main_*.c | awk '$2 != "total" && $1 > 200 {print $2 ": " $1 " lines"}')"
if command -v ctags > /dev/null; then
    result "functions have at most 80 lines" "$(find src -name '*.c' -o -name '*.cu' -o -name '*.cuh' | sort | xargs ctags -f - --languages=C,CUDA --kinds-C=f --kinds-CUDA=f --fields=+ne 2> /dev/null | awk -F'\t' '
        {s = 0; e = 0; for (i = 4; i <= NF; i++) { if ($i ~ /^line:/) { split($i, a, ":"); s = a[2] } if ($i ~ /^end:/) { split($i, b, ":"); e = b[2] } }
         if (e - s >= 80) print $2 ": " $1 " has " e - s + 1 " lines" }')"
else
    skip "functions have at most 80 lines" "ctags is not installed"
fi
result "lines have at most 110 columns" "$(sources | xargs grep -H -n -E '^.{111,}' | cut -d: -f1 | sort | uniq -c | sed 's/$/ (run make format)/')"
result "no unfinished work" "$(sources | xargs grep -n -i -E 'TODO|FIXME|XXX|HACK|not implemented|placeholder' | cut -c1-140)"
result "no rand, no fast-math" "$({ sources | xargs grep -n -E '[^a-z_]s?rand\(|fast-math'; grep -n 'fast-math' Makefile make/*.mk; } | cut -c1-140)"
result "only stage prints or exits" "$(find src -name '*.c' ! -path 'src/stage/*' ! -name log.c ! -name 'comm*.c' ! -name stop.c | xargs grep -n -E '(^|[^a-z_])(exit|abort|printf|puts)\(' | cut -c1-140)"
if [ -d "$build/lib" ]; then
    result "symbols begin with mb_" "$(find "$build/lib" -name 'libmb_*.a' ! -name '*_emulated.a' -exec nm -g --defined-only {} + 2> /dev/null | awk 'NF == 3 && $2 ~ /[TDBR]/ && $3 !~ /^(mb_|main$|_|\.)/ {print $3}' | sort -u)"
    # Only .data and .bss count: constant tables of pointers live in .data.rel.ro.
    result "no mutable globals" "$(find "$build/lib" -name 'libmb_*.a' ! -name '*_emulated.a' -exec nm --format=sysv --defined-only {} + 2> /dev/null | awk -F'|' '{gsub(/ /, "", $1); gsub(/ /, "", $7)}
        NF >= 7 && $7 ~ /^\.(data|bss|tdata|tbss)(\.|$)/ && $7 !~ /^\.data\.rel\.ro/ && $1 !~ /^(__|_ZL|_ZGV|_ZZL.*__device_stub__|DW\.ref|\.)/ {print $1}' | sed 's/\.[0-9]*$//' | sort -u | grep -v -x -f tests/lint/globals.txt)"
fi
result "shell scripts pass shellcheck" "$(command -v shellcheck > /dev/null && git ls-files -co --exclude-standard '*.sh' .ci/run 'slurm/*.sbatch' 'slurm/testbed/*' | grep -v '\.md$' | xargs shellcheck -x -S warning 2>&1 | head -40)"
if command -v cppcheck > /dev/null; then
    result "cppcheck finds nothing" "$(cppcheck --std=c11 --quiet --enable=warning,portability --inline-suppr --suppress=missingInclude --suppress=preprocessorErrorDirective \
        --suppress=unknownMacro --suppressions-list=tests/lint/cppcheck.txt -j 2 -Isrc -D__x86_64__ $(find src -name '*.c' ! -name '*_avx*') 2>&1 | grep -E '(error|warning|portability):' | head -20)"
else
    skip "cppcheck finds nothing" "cppcheck is not installed"
fi
if command -v clang-format > /dev/null; then
    result "sources are formatted (make format)" "$(find src tests -name '*.c' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' -o -name '*.cc' | sort | xargs clang-format --dry-run 2>&1 | grep -o '^[^: ]*:[0-9]*:[0-9]*: warning' | cut -d: -f1 | sort | uniq -c)"
else
    skip "sources are formatted" "clang-format is not installed"
fi
# The CUDA files, where nvcc was found.
if compgen -G "$build/obj/ops/cuda/*.warnings" > /dev/null; then
    result "nvcc has no warnings" "$(cat "$build"/obj/ops/cuda/*.warnings | head -20)"
    result "attention and expert products use the tensor cores of every chip built for" "$(tests/lint/tensor_cores.sh "$build")"
    result "programs start without CUDA's libraries" "$(ldd "$build/bin/moe-train" | grep -i -E 'cuda|cublas|nccl|nvidia')"
else
    for name in "nvcc has no warnings" "attention and expert products use the tensor cores of every chip built for" "programs start without CUDA's libraries"; do
        skip "$name" "no nvcc here"
    done
fi
if [ -x "$build/bin/moe-train" ]; then
    result "docs/keys.md is what the tables say (make docs)" "$({ echo '# Keys'; echo; echo "Generated by \`make docs\` from the programs' own tables."; echo; for p in "$build"/bin/moe-*; do "$p" --print-keys; done; } | diff - docs/keys.md | head -20)"
    result "no program has a key twice" "$(for p in "$build"/bin/moe-*; do "$p" --print-config 2> /dev/null | sed -n 's/^\([a-z_.]*\) *=.*/\1/p' | sort | uniq -d | sed "s|^|$(basename "$p") |"; done)"
    result "every program has --help, --version and refuses unknown keys" "$(for p in "$build"/bin/moe-*; do "$p" --help | grep -q 'Exit codes' || echo "$p --help"
        "$p" --version | grep -q moe- || echo "$p --version"; "$p" nonsense.key=1 > /dev/null 2>&1; [ $? -eq 2 ] || echo "$p nonsense.key=1"; done)"
fi
result "nothing large is tracked" "$(git ls-files | xargs -r -d '\n' ls -l 2> /dev/null | awk '$5 > 1048576 {print $9 ": " $5 " bytes"}')"
result "STATUS, README, DECISIONS are there" "$(for f in README.md docs/STATUS.md docs/DECISIONS.md docs/formats.md .ci/run; do [ -f $f ] || echo "$f is missing"; done)"
echo "1..$number"
[ "$bad" -eq 0 ]
