# Sourced by the scripts beside it: goes to the repository's root, makes the virtual environment once, puts it on the PATH.
# TORCH_PINS="torch==2.7.1 torchvision==0.22.1" installs other pins (P40) into an environment of their own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "error: $python is too old or missing; Python 3.10 or newer is needed (PYTHON=/path/to/python3.12 chooses one)" >&2
    exit 2
fi
venv=.venv
requirements=$(cat requirements.txt)
if [ -n "${TORCH_PINS:-}" ]; then
    venv=.venv-$(echo "$TORCH_PINS" | tr -cs 'a-z0-9.\n' '-')
    requirements=$(grep -vE '^torch(vision)?==' requirements.txt; tr ' ' '\n' <<< "$TORCH_PINS")
fi
if [ "$requirements" = "$(cat "$venv/installed-requirements.txt" 2>/dev/null)" ]; then
    echo "environment: reusing $venv"
else
    echo "environment: installing into $venv (torch with its CUDA libraries: about 7 GB, some minutes)"
    if ! "$venv/bin/python" -m pip --version > /dev/null 2>&1; then
        "$python" -m venv --clear "$venv" || { echo "error: no venv; on Debian: apt-get install python3-venv" >&2; exit 2; }
    fi
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement <(echo "$requirements")
    echo "$requirements" > "$venv/installed-requirements.txt"
fi
export PATH="$PWD/$venv/bin:$PATH"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # keeps torchrun's warning away; on a CPU a rank takes its share of the cores
