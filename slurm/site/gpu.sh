# shellcheck shell=bash disable=SC2034
# gpu.sh: an example for nodes with 4 GPUs of 80 GiB, 64 cores and 512 GiB: one rank per GPU. Copy it and put in your names.

mb_site_sbatch=(--account=hpc_prj_0042 --qos=normal)

# Conversions, selections and reports need no GPU; many sites have a partition for such jobs.
mb_site_light=(--partition=cpu --cpus-per-task=8 --mem=96G)

# slurm.gpus of a study replaces --gpus-per-node: with slurm.gpus = 1 say slurm.ntasks = 1 too.
mb_site_heavy=(--partition=gpu --gpus-per-node=4 --ntasks-per-node=4 --cpus-per-task=16 --exclusive)

# Every rank sees the GPUs of its node and takes one nobody else has; NCCL and CUDA-aware MPI reach their neighbours' this way. Where each
# rank should see its own only: srun ... --gpus-per-task=1 --gpu-bind=closest. backend=auto comes to the GPUs in both cases.
mb_site_launcher=(srun --mpi=pmix --cpu-bind=cores)

mb_site_setup() {
    module purge
    module load GCC/13.2.0 CUDA/12.4 OpenMPI/4.1.6-CUDA HDF5/1.14.3
    export OMPI_MCA_pml=ucx UCX_TLS=rc,sm,cuda_copy,cuda_ipc,gdr_copy
}

# Deleted by the site when the job ends: copies are per job, not per node.
mb_site_scratch=${TMPDIR:-/tmp}

# Jobs are not allowed to requeue themselves here.
mb_site_requeue=resubmit
mb_site_node_memory_gib=480
mb_site_cores_per_node=64
mb_site_gpus_per_node=4
mb_site_gpu_memory_gib=79 # what programs can have of 80
mb_site_max_minutes=1440
mb_site_throttle=16
# After srun --gpus-per-node=4 --ntasks-per-node=4 build/bin/moe-inspect machine measure=true out=conf/machine/h100-sxm.json: h100-sxm.
mb_site_machine=''
