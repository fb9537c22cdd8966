#!/usr/bin/env bash
# Installs the Debian packages spinfer is built from. Safe to run again: where everything is there it only checks.
#   scripts/setup.sh            what building and testing need
#   scripts/setup.sh --check    installs nothing; exit status 1 if something is missing
set -euo pipefail

packages=(
  g++ cmake ninja-build ccache pkg-config     # toolchain
  nlohmann-json3-dev libcli11-dev             # JSON, command line
  libhwy-dev                                  # SIMD with run-time dispatch
  libeigen3-dev                               # Cholesky and triangular solves of pruning
  libspdlog-dev libfmt-dev                    # logging, formatting
  libsentencepiece-dev libpcre2-dev libutf8proc-dev  # tokenizers
  libxxhash-dev                               # prefix-cache hashes
  libboost1.81-dev prometheus-cpp-dev         # HTTP server, metrics
  libgtest-dev                                # tests
  clang libclang-rt-14-dev                    # fuzz targets (libFuzzer)
  python3 python3-venv                        # command-line tests, and a venv for the openai client's
)

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' || missing+=("$package")
done

if [ ${#missing[@]} -eq 0 ]; then
  echo "setup: all ${#packages[@]} packages are installed"
elif [ "${1:-}" = "--check" ]; then
  echo "setup: missing: ${missing[*]}" >&2
  exit 1
else
  as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "setup: needs root or sudo to install: ${missing[*]}" >&2; exit 1; }
    as_root=(sudo)
  fi
  echo "setup: installing ${missing[*]}"
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  echo "setup: installed ${#missing[@]} packages"
fi

# For the test of the server's page, which skips without it.
if [ "${1:-}" != "--check" ] && ! command -v chromium-headless-shell chromium >/dev/null; then
  as_root=()
  [ "$(id -u)" -eq 0 ] || as_root=(sudo -n)
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    chromium-headless-shell >/dev/null 2>&1 || echo "setup: no chromium-headless-shell, the page's test will skip"
fi

if command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ]; then
  echo "setup: CUDA compiler found"
else
  echo "setup: no CUDA compiler, building for the CPU only"
fi
