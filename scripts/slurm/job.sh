#!/bin/sh
#SBATCH --job-name=klein
#SBATCH --gres=gpu:1
#SBATCH --time=01:00:00
# A job that begins only where its models are complete.
set -eu
COMFYUI=${KLEIN_SETUP_COMFYUI:-/shared/ComfyUI}
"${KLEIN_SETUP:-/opt/klein-setup/bin/klein-setup}" verify --quick --set "${KLEIN_SETUP_SET:-fp8}" --comfyui "$COMFYUI"
exec "$@"
