#!/bin/sh
# Install the published Atacformer stack into a new virtual environment: sh benchmarks/reference/install.sh FOLDER
#
# The versions that work together: geniml 0.8.4 fails at construction with transformers 5, in its collators with
# transformers 4.57, and in tokenizing AnnData with gtars from 0.5.3 on. geniml is installed without its dependencies:
# they are open-ended, and most of them (s3fs, zarr 2, ...) are for parts of it that are not used here.
set -eu
[ $# = 1 ] || { echo "usage: $0 FOLDER" >&2; exit 64; }
"${PYTHON:-python3.11}" -m venv "$1"
"$1/bin/pip" install torch==2.13.0
"$1/bin/pip" install transformers==4.52.4 gtars==0.3.0 scanpy wandb
"$1/bin/pip" install --no-deps geniml==0.8.4
"$1/bin/python" -W ignore -c "import geniml.atacformer; print('ready:', geniml.__version__)"
