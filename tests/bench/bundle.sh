#!/usr/bin/env bash
# A folder for a machine that has none of our libraries (`make bundle`): programs, tests and measurements with their shared libraries,
# stripped, and what they read; one process, no MPI start. Beside it the same as one compressed file.
#   bundle.sh BUILD      writes BUILD/bundle/ and BUILD/bundle.tar.xz, prints the size of each part
# On the other machine:  tar xf bundle.tar.xz   (or python3 -m tarfile -e bundle.tar.xz .)   then   bundle/run moe-train ...
#                        bundle/tests/bench/gpu_check.sh RESULTS
# libc stays the machine's own; cuBLAS, NCCL and the driver are found there at run time.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:?usage: bundle.sh BUILD}
to=$build/bundle
rm -rf "$to" "$to.tar.xz"
mkdir -p "$to/bin" "$to/bench" "$to/check" "$to/lib" "$to/tests"

cp "$build"/bin/moe-* "$to/bin"
cp "$build/bench/native" "$build/bench/roofline" "$to/bench"
for folder in ops model learn; do
    mkdir -p "$to/check/$folder"
    for test in "$build/gpu/tests/$folder"/test_*; do
        case $test in *.d | *_speed | *_speed_elem | *fuzz*) ;; *) [ -x "$test" ] && cp "$test" "$to/check/$folder" ;; esac
    done
done
find "$to/bin" "$to/bench" "$to/check" -type f -exec strip -g {} +

# Each library once, under the name programs ask for.
find "$to/bin" "$to/bench" "$to/check" -type f -exec ldd {} + | awk '$2 == "=>" && $3 ~ "^/" {print $3}' | sort -u |
    grep -vE '/(libc|libm|libdl|libpthread|librt|ld-linux[^/]*)\.so' | while read -r library; do cp -L "$library" "$to/lib"; done
find "$to/lib" -type f -exec chmod u+w {} + -exec strip -g {} +

cp -r conf "$to"
mkdir -p "$to/tests/bench" "$to/tests/golden"
cp tests/bench/*.py tests/bench/*.sh tests/bench/timeline.c "$to/tests/bench"
cp -r tests/golden/models tests/golden/encoders tests/golden/losses "$to/tests/golden"
find "$to" -name __pycache__ -prune -exec rm -rf {} +

cat > "$to/run" << 'RUN'
#!/bin/sh
# Run a program, test or measurement of this folder with its own libraries: ./run moe-train ..., ./run ops/test_ops, ./run roofline
# cuBLAS is looked for where CUDA is usually installed, and in MB_CUDA_LIBS (folders, separated by ':').
here=$(cd "$(dirname "$0")" && pwd)
name=$1
shift
libraries=$here/lib${MB_CUDA_LIBS:+:$MB_CUDA_LIBS}
for folder in "${CUDA_HOME:-/usr/local/cuda}/lib64" /usr/local/cuda/targets/x86_64-linux/lib /usr/local/nvidia/lib64; do
    [ -d "$folder" ] && libraries=$libraries:$folder
done
export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" MB_COMM="${MB_COMM:-self}"
for folder in bin check bench; do
    [ -x "$here/$folder/$name" ] && exec "$here/$folder/$name" "$@"
done
echo "run: there is no $name in $here/bin, check or bench" >&2
exit 2
RUN
chmod +x "$to/run"

# Programs hold much in common: sorted by kind and with a long memory, the compressor sees it once.
tar -C "$build" --sort=name --owner=0 --group=0 -cf - bundle | xz -T1 -6 --lzma2=preset=6,dict=192MiB > "$to.tar.xz"
for part in bin bench check lib conf tests; do printf '%-8s %s\n' "$part" "$(du -sh "$to/$part" | cut -f1)"; done
printf '%-8s %s, compressed %s\n' all "$(du -sh "$to" | cut -f1)" "$(du -h "$to.tar.xz" | cut -f1)"
limit_mib=${MB_BUNDLE_MIB:-64}
[ "$(stat -c %s "$to.tar.xz")" -le $((limit_mib * 1048576)) ] || { echo "bundle.tar.xz is over $limit_mib MiB (MB_BUNDLE_MIB)" >&2; exit 1; }
