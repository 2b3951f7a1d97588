/* absent: what stands for the CUDA backend in a build without it. */
#include "ops/ops_table.h"

bool mb_ops_cuda_is_built(void)
{
    return false;
}

int mb_ops_cuda_devices(void)
{
    return 0;
}

mb_status mb_ops_cuda_bus_id(int device, char out_text[MB_OPS_BUS_ID])
{
    (void)out_text;
    return mb_fail(MB_EUNSUPPORTED, "GPU %d: this build has no CUDA", device);
}

mb_status mb_ops_cuda_fill(mb_ops *ops, const mb_ops_options *options)
{
    (void)ops, (void)options;
    return mb_fail(MB_EUNSUPPORTED,
                   "backend \"cuda\": this build has no CUDA (nvcc was not found when it was "
                   "made); use backend = \"cpu\" or \"auto\"");
}
