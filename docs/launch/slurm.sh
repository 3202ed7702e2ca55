#!/bin/bash
# Four hosts of eight GPUs: sbatch slurm.sh
#SBATCH --job-name=ldm
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --requeue
# What was said before a requeue is kept.
#SBATCH --open-mode=append
# The processes are asked to save five minutes before the time is up.
#SBATCH --signal=TERM@300

# One process for each GPU, as JAX has it where Slurm starts it.
srun --kill-on-bad-exit=0 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    python train.py --distributed \
    --config=configs/imagenet_class.py \
    --workdir=/shared/runs/imagenet_class \
    --config.first_stage.workdir=/shared/runs/autoencoder_vq
status=$?

# Asked to stop, a lost process or store, killed, aborted by JAX: the same command goes on.
case $status in
    143 | 9 | 11 | 137 | 134) scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit $status
