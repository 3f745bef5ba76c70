#!/usr/bin/env bash
# Trains on the GPUs of a Slurm cluster: writes a batch script and submits it.
set -euo pipefail

usage() {
  cat <<'TEXT'
Trains on the GPUs of a Slurm cluster: writes a batch script and submits it.

  tools/launch/slurm.sh --nodes=4 --gpus_per_node=8 [options] -- --config=FILE --workdir=DIR [...]

Arguments after -- go to unimed_jax.train. DIR is on a file system that all nodes share, or gs://...
One process per GPU. The job saves a checkpoint and requeues itself two minutes before its time
limit, on preemption, and when a process or node is lost. It ends when the run has finished, or has
rejected its settings (exit status 2).

  --nodes=N              required
  --gpus_per_node=N      required
  --cpus_per_gpu=N       default 8
  --time=D-HH:MM:SS      default 1-00:00:00
  --partition=NAME       default: the cluster's
  --account=NAME         default: yours
  --name=NAME            default unimed_jax
  --max_restarts=N       default 100
  --python=COMMAND       default: python of this shell; must exist on every node
  --dry-run              print the batch script and do nothing

The run starts in the current directory.
TEXT
}

nodes='' gpus_per_node='' cpus_per_gpu=8 time=1-00:00:00 partition='' account='' name=unimed_jax
max_restarts=100 python=$(command -v python || true) dry_run=no
while (($#)); do
  case $1 in
    --help) usage; exit ;;
    --dry-run) dry_run=yes ;;
    --nodes=* | --gpus_per_node=* | --cpus_per_gpu=* | --time=* | --partition=* | --account=* | \
      --name=* | --max_restarts=* | --python=*)
      option=${1%%=*}
      printf -v "${option#--}" %s "${1#*=}"
      ;;
    --) shift; break ;;
    *) echo "error: unknown option $1; see --help" >&2; exit 2 ;;
  esac
  shift
done
[[ $nodes && $gpus_per_node && $# -gt 0 ]] || { usage >&2; exit 2; }

script=$(
  cat <<TEXT
#!/bin/bash
#SBATCH --job-name=$name
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$gpus_per_node
#SBATCH --gpus-per-node=$gpus_per_node
#SBATCH --cpus-per-task=$cpus_per_gpu
#SBATCH --time=$time${partition:+
#SBATCH --partition=$partition}${account:+
#SBATCH --account=$account}
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --output=$name-%j.log
#SBATCH --open-mode=append

cd $(printf %q "$PWD") || exit
trap : TERM # the processes save; this script waits for them
status=0
# a process that fails tells the others, which end by themselves
srun --kill-on-bad-exit=0 --wait=120 \\
  $(printf '%q ' "$python" -m unimed_jax.train --stopped_status=75 "$@")|| status=\$?
if ((status == 0 || status == 2)); then # finished; settings that the user must fix
  exit \$status
fi
if ((\${SLURM_RESTART_COUNT:-0} >= $max_restarts)); then
  echo "error: status \$status after $max_restarts restarts" >&2
  exit \$status
fi
echo "status \$status: back into the queue"
scontrol requeue "\$SLURM_JOB_ID"
TEXT
)
if [[ $dry_run == yes ]]; then
  printf '%s\n' "$script"
else
  sbatch <<<"$script"
fi
