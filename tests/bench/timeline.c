/* timeline: when the GPU worked, told by CUPTI: a line per kernel, copy and fill of its process.
 *
 *   cc -shared -fPIC -I<cuda>/include timeline.c -L<cuda>/lib64 -lcupti -o timeline.so
 *   CUDA_INJECTION64_PATH=$PWD/timeline.so MB_TIMELINE_FILE=out.csv moe-train ...
 *
 * Lines: kind,start ns,end ns,name. The driver loads the library and calls InitializeInjection when the
 * process first uses it; what is recorded is written as buffers fill and when the process ends by itself.
 * timeline.py makes sums of it.
 */
#include <cupti.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

enum { BUFFER_BYTES = 8 << 20, ALIGN = 8 };

/* Newer structs begin as this one: what is read here lies where it lay. */
typedef CUpti_ActivityKernel9 kernel_record;

static FILE *out_file(void)
{
    static FILE *file;
    const char *path = getenv("MB_TIMELINE_FILE");
    if (file == NULL) file = fopen(path != NULL ? path : "timeline.csv", "w");
    return file;
}

static void write_record(FILE *out, const CUpti_Activity *record)
{
    switch (record->kind) {
    case CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL: {
        const kernel_record *k = (const kernel_record *)record;
        fprintf(out, "kernel,%llu,%llu,%s\n", (unsigned long long)k->start, (unsigned long long)k->end,
                k->name);
        break;
    }
    case CUPTI_ACTIVITY_KIND_MEMCPY: {
        const CUpti_ActivityMemcpy6 *m = (const CUpti_ActivityMemcpy6 *)record;
        fprintf(out, "copy,%llu,%llu,copy kind %d of %llu bytes\n", (unsigned long long)m->start,
                (unsigned long long)m->end, (int)m->copyKind, (unsigned long long)m->bytes);
        break;
    }
    case CUPTI_ACTIVITY_KIND_MEMSET: {
        const CUpti_ActivityMemset4 *m = (const CUpti_ActivityMemset4 *)record;
        fprintf(out, "fill,%llu,%llu,fill of %llu bytes\n", (unsigned long long)m->start,
                (unsigned long long)m->end, (unsigned long long)m->bytes);
        break;
    }
    default:
        break;
    }
}

static void CUPTIAPI give_buffer(uint8_t **buffer, size_t *size, size_t *most_records)
{
    *size = BUFFER_BYTES;
    *buffer = aligned_alloc(ALIGN, BUFFER_BYTES);
    *most_records = 0;
}

static void CUPTIAPI take_buffer(CUcontext context, uint32_t stream, uint8_t *buffer, size_t size,
                                 size_t used)
{
    CUpti_Activity *record = NULL;
    FILE *out = out_file();
    (void)context, (void)stream, (void)size;
    while (out != NULL && cuptiActivityGetNextRecord(buffer, used, &record) == CUPTI_SUCCESS)
        write_record(out, record);
    if (out != NULL) fflush(out);
    free(buffer);
}

static void finish(void)
{
    cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
}

static int check(CUptiResult result, const char *what)
{
    const char *text = "";
    if (result == CUPTI_SUCCESS) return 1;
    cuptiGetResultString(result, &text);
    fprintf(stderr, "timeline: %s: %s\n", what, text);
    return 0;
}

__attribute__((visibility("default"))) int InitializeInjection(void);
int InitializeInjection(void)
{
    if (!check(cuptiActivityRegisterCallbacks(give_buffer, take_buffer), "cuptiActivityRegisterCallbacks") ||
        !check(cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL), "kernels") ||
        !check(cuptiActivityEnable(CUPTI_ACTIVITY_KIND_MEMCPY), "copies") ||
        !check(cuptiActivityEnable(CUPTI_ACTIVITY_KIND_MEMSET), "fills"))
        return 1; /* the program runs on, unrecorded */
    cuptiActivityFlushPeriod(500);
    atexit(finish);
    return 1;
}
