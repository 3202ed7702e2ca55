#!/bin/bash
# Four hosts of eight GPUs: sbatch slurm.sh
#SBATCH --job-name=ldm
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --requeue
# Keeps the output from before a requeue.
#SBATCH --open-mode=append
# Five minutes before the time limit the processes get SIGTERM and save a checkpoint.
#SBATCH --signal=TERM@300

# One process per GPU, as JAX expects under Slurm.
srun --kill-on-bad-exit=0 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    python train.py --distributed \
    --config=configs/imagenet_class.py \
    --workdir=/shared/runs/imagenet_class \
    --config.first_stage.workdir=/shared/runs/autoencoder_vq
status=$?

# Stopped by SIGTERM, a lost process or storage, killed, aborted by JAX: requeue to resume.
case $status in
    143 | 9 | 11 | 137 | 134) scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit $status
