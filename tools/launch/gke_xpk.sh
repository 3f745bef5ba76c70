#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster: one xpk workload, which GKE restarts.
set -euo pipefail

usage() {
  cat <<'TEXT'
Trains on TPU slices of a GKE cluster: one xpk workload, which GKE restarts.

  tools/launch/gke_xpk.sh --name=NAME --cluster=NAME --project=ID --zone=ZONE --tpu_type=v5litepod-16 \
    --image=IMAGE [options] -- --config=FILE --workdir=gs://BUCKET/DIR [...]

Arguments after -- go to unimed_jax.train. IMAGE holds this checkout as its working directory, with
`pip install -e .[tpu]` done (docs/guides/launching.md). GKE restarts the workload when a pod is lost, drained
or preempted, and when the run fails. Needs xpk (pip install xpk) and docker on PATH.

  --num_slices=N         default 1
  --priority=LEVEL       default medium
  --max_restarts=N       default 100
  --dry-run              print the command and do nothing
TEXT
}

name='' cluster='' project='' zone='' tpu_type='' image='' num_slices=1 priority=medium
max_restarts=100 dry_run=no
while (($#)); do
  case $1 in
    --help) usage; exit ;;
    --dry-run) dry_run=yes ;;
    --name=* | --cluster=* | --project=* | --zone=* | --tpu_type=* | --image=* | --num_slices=* | \
      --priority=* | --max_restarts=*)
      option=${1%%=*}
      printf -v "${option#--}" %s "${1#*=}"
      ;;
    --) shift; break ;;
    *) echo "error: unknown option $1; see --help" >&2; exit 2 ;;
  esac
  shift
done
[[ $name && $cluster && $project && $zone && $tpu_type && $image && $# -gt 0 ]] || {
  usage >&2
  exit 2
}

# exec: the pod's SIGTERM reaches Python itself. A stopped run must not count as a finished one.
train=$(printf '%q ' exec python -m unimed_jax.train --stopped_status=75 "$@")
command=(
  xpk workload create
  --workload="$name" --cluster="$cluster" --project="$project" --zone="$zone"
  --tpu-type="$tpu_type" --num-slices="$num_slices" --priority="$priority"
  --docker-image="$image"
  --max-restarts="$max_restarts" --restart-on-user-code-failure
  --termination-grace-period-seconds=120
  --command="${train% }"
)
if [[ $dry_run == yes ]]; then
  printf '%q ' "${command[@]}"
  echo
else
  "${command[@]}"
fi
