/* A CUDA device that does not exist: the part of the stub driver that is written by hand.
 *
 * Preloaded into a CUDA build of torch, it stands in for the CUDA runtime, the driver, cuBLAS and cuDNN. Memory is
 * handed out as addresses of a range that is never mapped, launches and copies to the device do nothing, copies to the
 * host write zeros. torch's dispatcher and its caching allocator run unchanged on top. Every other symbol that torch
 * imports gets a generated body that returns 0 (see stub.py); a function written here wins over a generated one.
 *
 * The types of the CUDA runtime are read, when this is compiled, from the headers that torch's own dependencies bring.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <driver_types.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define RANGE_LOW ((uint64_t)1 << 44) /* 64 TiB of addresses that neither the program nor its libraries use */
#define RANGE_HIGH (RANGE_LOW + ((uint64_t)1 << 46))
#define GRANULE ((uint64_t)2 << 20) /* the driver's page for device memory: 2 MiB */
#define OUT_OF_MEMORY 2             /* cudaErrorMemoryAllocation and CUDA_ERROR_OUT_OF_MEMORY */

/* ---- settings, read from the environment once ------------------------------------------------------------------ *
 * There are BENCH_STUB_DEVICES devices, one unless it is set. Device k has the value of BENCH_STUB_<k>_<KEY>, or that of
 * BENCH_STUB_<KEY>. Where there are several, CUDA_VISIBLE_DEVICES (numbers or whole UUIDs) leaves some, in its order; the
 * one that a process uses is the first of them. With BENCH_STUB_BOARD_UUID they are slices of that board (MIG), of which
 * CUDA shows a process one. BENCH_STUB_INTEGRATED=1 is a device that takes host memory. */

static struct settings {
    char name[256];
    int multiprocessors, major, minor, threads_per_multiprocessor, shared_optin, l2_bytes, cuda_version;
    uint64_t memory_bytes, context_bytes, others_bytes; /* others: what processes that are not ours hold */
    uint64_t allowed_bytes; /* to this process, by its control group */
    char addresses; /* 'a'scending, 'd'escending, 'l'owest free */
} device;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* The setting `key` of device k, or `otherwise`. */
__attribute__((visibility("hidden"))) const char *stub_text(int k, const char *key, const char *otherwise) {
    char name[128];
    snprintf(name, sizeof name, "BENCH_STUB_%d_%s", k, key);
    const char *text = getenv(name);
    if (!text || !*text) {
        snprintf(name, sizeof name, "BENCH_STUB_%s", key);
        text = getenv(name);
    }
    return text && *text ? text : otherwise;
}
__attribute__((visibility("hidden"))) int stub_devices(void) { return atoi(stub_text(0, "DEVICES", "1")); }

/* The device that CUDA calls `ordinal` in this process; -1 where there is none. */
__attribute__((visibility("hidden"))) int stub_visible(int ordinal) {
    const char *chosen = getenv("CUDA_VISIBLE_DEVICES");
    int count = stub_devices();
    if (*stub_text(0, "BOARD_UUID", "") && ordinal) return -1;
    if (count == 1 || !chosen) return ordinal < count ? ordinal : -1;
    for (int at = 0; *chosen; at++) {
        size_t length = strcspn(chosen, ",");
        int found = -1;
        for (int k = 0; k < count && found < 0; k++) {
            const char *uuid = stub_text(k, "UUID", "");
            if (strlen(uuid) == length && !strncmp(uuid, chosen, length)) found = k;
        }
        if (found < 0 && *chosen >= '0' && *chosen <= '9' && atoi(chosen) < count) found = atoi(chosen);
        if (found < 0) return -1;
        if (at == ordinal) return found;
        chosen += length + (chosen[length] == ',');
    }
    return -1;
}

static uint64_t number_of(int k, const char *key, uint64_t otherwise) {
    const char *text = stub_text(k, key, "");
    return *text ? strtoull(text, NULL, 10) : otherwise;
}
static uint64_t number(const char *key, uint64_t otherwise) { return number_of(stub_visible(0), key, otherwise); }

static void read_settings_of(int k, struct settings *to) {
    snprintf(to->name, sizeof to->name, "%s", stub_text(k, "NAME", "stub device"));
    to->multiprocessors = (int)number_of(k, "MULTIPROCESSORS", 132);
    to->major = (int)number_of(k, "CAPABILITY_MAJOR", 9);
    to->minor = (int)number_of(k, "CAPABILITY_MINOR", 0);
    to->threads_per_multiprocessor = (int)number_of(k, "THREADS_PER_MULTIPROCESSOR", 2048);
    to->shared_optin = (int)number_of(k, "SHARED_OPTIN_BYTES", 232448);
    to->l2_bytes = (int)number_of(k, "L2_BYTES", 62914560);
    to->cuda_version = (int)number_of(k, "CUDA_VERSION", 12040);
    to->memory_bytes = number_of(k, "MEMORY_BYTES", 150754820096ull);
    to->context_bytes = number_of(k, "CONTEXT_BYTES", 0);
    to->others_bytes = number_of(k, "OTHERS_BYTES", 0);
    to->allowed_bytes = number_of(k, "ALLOWED_BYTES", to->memory_bytes);
    to->addresses = *stub_text(k, "ADDRESSES", "a");
}
static void read_settings(void) { read_settings_of(stub_visible(0), &device); }

static void settings(void) { pthread_once(&once, read_settings); }

/* ---- faults: BENCH_STUB_FAULT_AT names a launch of this process, counted from 1 ----------------------------------- *
 * From that launch on the context is lost, as CUDA's is: whatever waits for the device, copies or allocates answers with
 * BENCH_STUB_FAULT_CODE (a cudaError) until the process ends. Code 0 is a kernel without an end: waiting never returns.
 * The code may be a list, `710,-,0`: one for each process that comes so far, `-` for none, the end of the list for none;
 * which one a process has is kept by files that it makes, BENCH_STUB_FAULT_MARK.0 and so on.
 * With BENCH_STUB_LOST_FILE, the GPU falls off the bus at the fault: the file is made, and while it is there a process
 * that starts finds no device, and NVML (nvml.c) calls it lost. */

static volatile int lost; /* the cudaError of the context from now on; ENDLESS for a kernel without an end */
#define ENDLESS (-1)

/* The number of this process among those that came as far as the fault, from 0. */
static int turn(void) {
    const char *mark = getenv("BENCH_STUB_FAULT_MARK");
    char path[4096];
    for (int number = 0; mark && *mark && number < 1000; number++) {
        snprintf(path, sizeof path, "%s.%d", mark, number);
        int handle = open(path, O_CREAT | O_EXCL | O_WRONLY, 0644);
        if (handle >= 0) return close(handle), number;
    }
    return 0;
}

static void lose_device(void) {
    const char *code = getenv("BENCH_STUB_FAULT_CODE");
    for (int left = turn(); code && left > 0; left--) {
        code = strchr(code, ',');
        code = code ? code + 1 : NULL;
    }
    if (!code || !*code || *code == '-') return;
    lost = atoi(code) ? atoi(code) : ENDLESS;
    const char *file = getenv("BENCH_STUB_LOST_FILE");
    if (file && *file) close(open(file, O_CREAT | O_WRONLY, 0644));
}

__attribute__((visibility("hidden"))) int stub_is_lost(void) {
    const char *file = getenv("BENCH_STUB_LOST_FILE");
    return file && *file && !access(file, F_OK);
}

static int state(void) { return lost == ENDLESS ? 0 : lost; }
static int wait_for_device(void) {
    while (lost == ENDLESS) sleep(1);
    return lost;
}

/* BENCH_STUB_CALL_FAULT names a call, `cuMemSetAccess:40`, that finds no memory from its 40th on: a driver's own tables,
 * modules and handles take memory too, and it says so wherever it first lacks it. A third part is another code than that
 * of the runtime and the driver, as the libraries have: `cublasCreate_v2:1:3`. `launch` is of every kernel. */
static int short_of_memory(const char *call, int *count) {
    char name[128] = "";
    int from = 1, code = OUT_OF_MEMORY;
    const char *fault = getenv("BENCH_STUB_CALL_FAULT");
    if (!fault || sscanf(fault, "%127[^:]:%d:%d", name, &from, &code) < 2 || strcmp(name, call)) return 0;
    return __sync_add_and_fetch(count, 1) >= from ? code : 0;
}
#define MAY_FAIL(call) do { static int count, code; if ((code = short_of_memory(call, &count))) return code; } while (0)

/* ---- device memory: a sorted list of address ranges ------------------------------------------------------------- */

struct range { uint64_t low, size; };
static struct range *ranges;
static size_t range_count, range_room;
static uint64_t used_bytes, next_up = RANGE_LOW, next_down = RANGE_HIGH;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void insert_range(size_t at, uint64_t low, uint64_t size) {
    if (range_count == range_room) {
        range_room = range_room ? 2 * range_room : 1024;
        ranges = realloc(ranges, range_room * sizeof *ranges);
    }
    memmove(ranges + at + 1, ranges + at, (range_count - at) * sizeof *ranges);
    ranges[at] = (struct range){low, size};
    range_count++;
}

/* Address of a new range of `size` bytes by the chosen policy; 'l' takes the lowest gap, the others never reuse. */
static uint64_t place(uint64_t size) {
    if (device.addresses == 'd') {
        next_down -= size;
        insert_range(0, next_down, size);
        return next_down;
    }
    if (device.addresses == 'l') {
        uint64_t low = RANGE_LOW;
        size_t at = 0;
        for (; at < range_count && ranges[at].low - low < size; at++) low = ranges[at].low + ranges[at].size;
        insert_range(at, low, size);
        return low;
    }
    insert_range(range_count, next_up, size);
    next_up += size;
    return next_up - size;
}

static uint64_t whole_granules(uint64_t size) { return (size + GRANULE - 1) / GRANULE * GRANULE; }

static int take_bytes(uint64_t size) {
    if (used_bytes + size + device.context_bytes + device.others_bytes > device.memory_bytes) return OUT_OF_MEMORY;
    if (used_bytes + size + device.context_bytes > device.allowed_bytes) return OUT_OF_MEMORY;
    used_bytes += size;
    return 0;
}

/* BENCH_STUB_ALONE names a file that a process locks with its first allocation, until the kernel sees it end. One that
 * finds it locked makes the file `.met` beside it: two processes had memory of the device at once. */
static void be_alone(void) {
    const char *file = getenv("BENCH_STUB_ALONE");
    char met[4096];
    if (!file || !*file) return;
    int handle = open(file, O_CREAT | O_RDWR | O_CLOEXEC, 0644);
    if (handle >= 0 && !flock(handle, LOCK_EX | LOCK_NB)) return;
    snprintf(met, sizeof met, "%s.met", file);
    close(open(met, O_CREAT | O_WRONLY, 0644));
}
static pthread_once_t allocated = PTHREAD_ONCE_INIT;

static int allocate(uint64_t *address, uint64_t size) {
    settings();
    pthread_once(&allocated, be_alone);
    if (state()) return state();
    size = whole_granules(size);
    pthread_mutex_lock(&lock);
    int status = take_bytes(size);
    *address = status ? 0 : place(size);
    pthread_mutex_unlock(&lock);
    return status;
}

/* Forgets the range that starts at `address`; returns its size, 0 where there is none. */
static uint64_t forget(uint64_t address) {
    size_t low = 0, high = range_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (ranges[middle].low < address) low = middle + 1; else high = middle;
    }
    if (low == range_count || ranges[low].low != address) return 0;
    uint64_t size = ranges[low].size;
    memmove(ranges + low, ranges + low + 1, (range_count - low - 1) * sizeof *ranges);
    range_count--;
    return size;
}

static void release(uint64_t address) {
    pthread_mutex_lock(&lock);
    used_bytes -= forget(address);
    pthread_mutex_unlock(&lock);
}

static int on_device(const void *p) { return (uint64_t)p >= RANGE_LOW && (uint64_t)p < RANGE_HIGH; }

static volatile int last_error; /* of a launch, whose own answer nobody asks for; reading it forgets it */
static int launch_kernel(void) {
    static uint64_t at, count;
    if (!count) at = number("FAULT_AT", 0);
    if (__sync_add_and_fetch(&count, 1) == at) lose_device();
    static int calls;
    return last_error = short_of_memory("launch", &calls);
}

EXPORT int cudaMalloc(void **p, size_t size) { return allocate((uint64_t *)p, size); }
EXPORT int cudaMallocAsync(void **p, size_t size, void *stream) { return allocate((uint64_t *)p, size); }
EXPORT int cudaFree(void *p) { release((uint64_t)p); return 0; }
EXPORT int cudaFreeAsync(void *p, void *stream) { release((uint64_t)p); return 0; }
EXPORT int cudaMallocHost(void **p, size_t size) { *p = calloc(1, size ? size : 1); return 0; }
EXPORT int cudaHostAlloc(void **p, size_t size, unsigned flags) { return cudaMallocHost(p, size); }
EXPORT int cudaMallocManaged(void **p, size_t size, unsigned flags) { return cudaMallocHost(p, size); }
EXPORT int cudaFreeHost(void *p) { free(p); return 0; }

/* What is left of the device's memory where so many bytes are taken, which may be more than there are; bytes. */
__attribute__((visibility("hidden"))) uint64_t stub_left(uint64_t taken) {
    settings();
    return taken < device.memory_bytes ? device.memory_bytes - taken : 0;
}

EXPORT int cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    settings();
    *total = device.memory_bytes;
    *free_bytes = stub_left(device.context_bytes + device.others_bytes + used_bytes);
    return 0;
}

/* For nvml.c: the memory of device k, what this process holds of it with its context, and what others hold; bytes. */
__attribute__((visibility("hidden"))) void stub_memory(int k, uint64_t *total, uint64_t *own, uint64_t *others) {
    settings();
    *total = number_of(k, "MEMORY_BYTES", 150754820096ull);
    *own = used_bytes && k == stub_visible(0) ? used_bytes + device.context_bytes : 0;
    *others = number_of(k, "OTHERS_BYTES", 0);
}

/* Virtual memory management, for expandable segments: a range of addresses, and handles that hold the bytes. */
EXPORT int cuMemMap(uint64_t p, size_t size, size_t offset, uint64_t *handle, unsigned long long flags) {
    MAY_FAIL("cuMemMap");
    return 0;
}
EXPORT int cuMemSetAccess(uint64_t p, size_t size, const void *access, size_t count) {
    MAY_FAIL("cuMemSetAccess");
    return 0;
}
EXPORT int cuMemAddressReserve(uint64_t *p, size_t size, size_t alignment, uint64_t wish, unsigned long long flags) {
    MAY_FAIL("cuMemAddressReserve");
    settings();
    pthread_mutex_lock(&lock);
    *p = place(whole_granules(size));
    pthread_mutex_unlock(&lock);
    return 0;
}
EXPORT int cuMemAddressFree(uint64_t p, size_t size) {
    pthread_mutex_lock(&lock);
    forget(p);
    pthread_mutex_unlock(&lock);
    return 0;
}
EXPORT int cuMemCreate(uint64_t **handle, size_t size, const void *properties, unsigned long long flags) {
    MAY_FAIL("cuMemCreate");
    settings();
    pthread_mutex_lock(&lock);
    int status = take_bytes(size);
    pthread_mutex_unlock(&lock);
    if (status) return status;
    *handle = malloc(sizeof **handle);
    **handle = size;
    return 0;
}
EXPORT int cuMemRelease(uint64_t *handle) {
    pthread_mutex_lock(&lock);
    used_bytes -= *handle;
    pthread_mutex_unlock(&lock);
    free(handle);
    return 0;
}
EXPORT int cuMemGetAllocationGranularity(size_t *granule, const void *properties, int option) {
    *granule = GRANULE;
    return 0;
}

/* ---- copies ----------------------------------------------------------------------------------------------------- */

static int copy(void *to, const void *from, size_t size) {
    if (wait_for_device()) return lost;
    if (on_device(to) || !size) return 0;
    if (on_device(from)) memset(to, 0, size); else memmove(to, from, size);
    return 0;
}
EXPORT int cudaMemcpy(void *to, const void *from, size_t size, int kind) { return copy(to, from, size); }
EXPORT int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) { return copy(to, from, size); }

EXPORT int cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
    memset(a, 0, sizeof *a);
    a->type = on_device(p) ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
    a->devicePointer = on_device(p) ? (void *)p : NULL;
    a->hostPointer = on_device(p) ? NULL : (void *)p;
    return 0;
}

/* ---- the device ------------------------------------------------------------------------------------------------- */

EXPORT int cudaGetDeviceCount(int *n) { /* 100: cudaErrorNoDevice */
    for (*n = 0; !(!lost && stub_is_lost()) && stub_visible(*n) >= 0; ++*n) {}
    return *n ? 0 : 100;
}
EXPORT int cudaGetDevice(int *d) { *d = 0; return 0; }
EXPORT int cudaDriverGetVersion(int *v) { settings(); *v = device.cuda_version; return 0; }
EXPORT int cudaRuntimeGetVersion(int *v) { settings(); *v = device.cuda_version; return 0; }
EXPORT const char *cudaGetErrorString(int e) { /* as CUDA 13's */
    switch (e) {
        case 0: return "no error";
        case OUT_OF_MEMORY: return "out of memory";
        case 46: return "CUDA-capable device(s) is/are busy or unavailable";
        case 100: return "no CUDA-capable device is detected";
        case 214: return "uncorrectable ECC error encountered";
        case 700: return "an illegal memory access was encountered";
        case 702: return "the launch timed out and was terminated";
        case 710: return "device-side assert triggered";
        case 719: return "unspecified launch failure";
        default: return "stub driver error";
    }
}
EXPORT const char *cudaGetErrorName(int e) { return e == OUT_OF_MEMORY ? "cudaErrorMemoryAllocation" : "cudaSuccess"; }
EXPORT int cudaDeviceGetPCIBusId(char *text, int length, int d) { snprintf(text, (size_t)length, "0000:%02x:00.0", 1 + stub_visible(d)); return 0; }
EXPORT int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return 0;
}

/* The 16 bytes of a device's UUID, `GPU-` and hexadecimal digits with hyphens between; zeros where it is not set. */
static void read_uuid(int k, char *bytes) {
    const char *text = *stub_text(k, "BOARD_ONLY", "0") == '1' ? stub_text(k, "BOARD_UUID", "") : stub_text(k, "UUID", "");
    if (strncmp(text, "GPU-", 4) && strncmp(text, "MIG-", 4)) return;
    for (int at = 0, read = 4; at < 16 && text[read]; at++) {
        unsigned value = 0;
        if (text[read] == '-') read++;
        sscanf(text + read, "%2x", &value);
        bytes[at] = (char)value;
        read += 2;
    }
}

static int fill_properties(struct cudaDeviceProp *p, int d) {
    int k = stub_visible(d);
    struct settings device; /* of this one, whichever the process uses */
    read_settings_of(k, &device);
    memset(p, 0, sizeof *p);
    memcpy(p->name, device.name, sizeof p->name);
    p->totalGlobalMem = device.memory_bytes;
    p->multiProcessorCount = device.multiprocessors;
    p->major = device.major;
    p->minor = device.minor;
    p->maxThreadsPerMultiProcessor = device.threads_per_multiprocessor;
    p->sharedMemPerBlock = 49152;
    p->sharedMemPerBlockOptin = (size_t)device.shared_optin;
    p->sharedMemPerMultiprocessor = (size_t)device.shared_optin + 1024;
    p->reservedSharedMemPerBlock = 1024;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->warpSize = 32;
    p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 2147483647;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->maxBlocksPerMultiProcessor = device.major == 8 && device.minor ? 16 : 32;
    p->totalConstMem = 65536;
    p->memPitch = 2147483647;
    p->textureAlignment = 512;
    p->texturePitchAlignment = 32;
    p->l2CacheSize = device.l2_bytes;
    p->memoryBusWidth = (int)number_of(k, "MEMORY_BUS_BITS", 5120);
    p->canMapHostMemory = p->concurrentKernels = p->unifiedAddressing = p->cooperativeLaunch = p->managedMemory = 1;
    p->asyncEngineCount = 3;
    p->integrated = number_of(k, "INTEGRATED", 0) != 0;
    read_uuid(k, p->uuid.bytes);
    p->pciBusID = 1 + k;
    return 0;
}
EXPORT int cudaGetDeviceProperties_v2(struct cudaDeviceProp *p, int d) { return fill_properties(p, d); }
#undef cudaGetDeviceProperties
EXPORT int cudaGetDeviceProperties(struct cudaDeviceProp *p, int d) { return fill_properties(p, d); }

static int attribute(int *value, int which, int d) {
    struct cudaDeviceProp p;
    fill_properties(&p, d);
    switch (which) {
    case cudaDevAttrMaxThreadsPerBlock: case cudaDevAttrMaxBlockDimX: case cudaDevAttrMaxBlockDimY: *value = 1024; break;
    case cudaDevAttrMaxBlockDimZ: *value = 64; break;
    case cudaDevAttrMaxGridDimX: *value = p.maxGridSize[0]; break;
    case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: *value = p.maxGridSize[1]; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = (int)p.sharedMemPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)p.sharedMemPerBlockOptin; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = (int)p.sharedMemPerMultiprocessor; break;
    case cudaDevAttrReservedSharedMemoryPerBlock: *value = (int)p.reservedSharedMemPerBlock; break;
    case cudaDevAttrTotalConstantMemory: *value = (int)p.totalConstMem; break;
    case cudaDevAttrWarpSize: *value = p.warpSize; break;
    case cudaDevAttrMaxPitch: *value = 2147483647; break;
    case cudaDevAttrMaxRegistersPerBlock: case cudaDevAttrMaxRegistersPerMultiprocessor: *value = p.regsPerBlock; break;
    case cudaDevAttrClockRate: *value = (int)number_of(stub_visible(d), "CLOCK_KHZ", 1980000); break;
    case cudaDevAttrMemoryClockRate: *value = (int)number_of(stub_visible(d), "MEMORY_CLOCK_KHZ", 0); break;
    case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
    case cudaDevAttrL2CacheSize: *value = p.l2CacheSize; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = p.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *value = p.maxBlocksPerMultiProcessor; break;
    case cudaDevAttrComputeCapabilityMajor: *value = p.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = p.minor; break;
    case cudaDevAttrPciBusId: *value = p.pciBusID; break;
    case cudaDevAttrUnifiedAddressing: case cudaDevAttrCooperativeLaunch: case cudaDevAttrConcurrentKernels:
    case cudaDevAttrCanMapHostMemory: case cudaDevAttrManagedMemory: case cudaDevAttrStreamPrioritiesSupported:
    case 102: /* CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED: expandable segments ask for it */
        *value = 1; break;
    case 133: /* CU_DEVICE_ATTRIBUTE_MPS_ENABLED */
        *value = (int)number_of(stub_visible(d), "MPS", 0); break;
    default: *value = 0;
    }
    return 0;
}
EXPORT int cudaDeviceGetAttribute(int *value, int which, int d) { return attribute(value, which, d); }
EXPORT int cuDeviceGetAttribute(int *value, int which, int d) { return attribute(value, which, d); }
EXPORT int cuDeviceGet(int *d, int ordinal) { *d = ordinal; return 0; }
EXPORT int cuDeviceGetCount(int *n) { return cudaGetDeviceCount(n); }
EXPORT int cuDriverGetVersion(int *v) { return cudaDriverGetVersion(v); }
EXPORT int cuDevicePrimaryCtxGetState(int d, unsigned *flags, int *active) { *flags = 0; *active = 1; return 0; }
EXPORT int cuDevicePrimaryCtxRetain(uint64_t *context, int d) { *context = 1; return 0; }
EXPORT int cuCtxGetCurrent(uint64_t *context) { *context = 1; return 0; }
EXPORT int cuGetExportTable(const void **table, const void *id) { /* 500: CUDA_ERROR_NOT_FOUND; there are no secret tables */
    *table = NULL;
    return 500;
}
EXPORT int cuGetErrorString(int e, const char **text) { *text = cudaGetErrorString(e); return 0; }
EXPORT int cuGetErrorName(int e, const char **text) { *text = cudaGetErrorName(e); return 0; }

/* ---- streams, events, kernels ----------------------------------------------------------------------------------- */

static uint64_t new_handle(void) { static uint64_t last = 0x1000; return __sync_add_and_fetch(&last, 0x10); }

EXPORT int cudaStreamCreate(uint64_t *s) { *s = new_handle(); return 0; }
EXPORT int cudaStreamCreateWithFlags(uint64_t *s, unsigned flags) { *s = new_handle(); return 0; }
EXPORT int cudaStreamCreateWithPriority(uint64_t *s, unsigned flags, int priority) { *s = new_handle(); return 0; }
EXPORT int cudaStreamGetPriority(void *s, int *priority) { *priority = 0; return 0; }
EXPORT int cudaStreamIsCapturing(void *s, int *status) { *status = 0; return 0; }
EXPORT int cudaStreamGetCaptureInfo(void *s, int *status) { *status = 0; return 0; }
EXPORT int cudaStreamGetCaptureInfo_v2(void *s, int *status) { *status = 0; return 0; }
EXPORT int cudaStreamGetCaptureInfo_v3(void *s, int *status) { *status = 0; return 0; }
EXPORT int cudaEventCreate(uint64_t *e) { *e = new_handle(); return 0; }
EXPORT int cudaEventCreateWithFlags(uint64_t *e, unsigned flags) { *e = new_handle(); return 0; }
EXPORT int cudaEventElapsedTime(float *ms, void *a, void *b) { *ms = 1.0f; return 0; }
EXPORT int cudaEventElapsedTime_v2(float *ms, void *a, void *b) { *ms = 1.0f; return 0; }

/* The arguments are left alone; nvcc of CUDA 13 calls the first, of CUDA 12 the second. */
EXPORT int __cudaLaunchKernel(void) { return launch_kernel(); }
EXPORT int cudaLaunchKernel(void) { return launch_kernel(); }
EXPORT int cudaLaunchKernelExC(const void *configuration, const void *f, void **a) { return launch_kernel(); }
EXPORT int cudaDeviceSynchronize(void) { MAY_FAIL("cudaDeviceSynchronize"); return wait_for_device(); }
EXPORT int cudaStreamSynchronize(void *s) { return wait_for_device(); }
EXPORT int cudaEventSynchronize(void *e) { return wait_for_device(); }
EXPORT int cudaEventQuery(void *e) { return state(); }
EXPORT int cudaStreamQuery(void *s) { return state(); }
EXPORT int cudaGetLastError(void) {
    int error = last_error;
    last_error = 0;
    return state() ? state() : error;
}
EXPORT int cudaPeekAtLastError(void) { return state() ? state() : last_error; }

EXPORT int cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *function) {
    settings();
    memset(a, 0, sizeof *a);
    a->numRegs = 32;
    a->maxThreadsPerBlock = 1024;
    a->ptxVersion = a->binaryVersion = 10 * device.major + device.minor;
    a->maxDynamicSharedSizeBytes = device.shared_optin;
    return 0;
}
EXPORT int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *function, int threads, size_t shared) {
    settings();
    *blocks = threads > 0 ? device.threads_per_multiprocessor / threads : 1;
    return 0;
}
EXPORT int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *f, int threads, size_t shared, unsigned flags) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, f, threads, shared);
}
EXPORT int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *f, int threads, size_t shared) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, f, threads, shared);
}
EXPORT int cuFuncGetAttribute(int *value, int which, void *f) { *value = 32; return 0; }

/* Modules and kernels that are compiled at run time load without complaint and have a handle. */
#define HANDLE(name) EXPORT int name(uint64_t *handle) { MAY_FAIL(#name); *handle = new_handle(); return 0; }
HANDLE(cuModuleLoad) HANDLE(cuModuleLoadData) HANDLE(cuModuleLoadDataEx) HANDLE(cuModuleLoadFatBinary) HANDLE(cuModuleGetFunction)
HANDLE(cuLibraryLoadData) HANDLE(cuLibraryLoadFromFile) HANDLE(cuLibraryGetKernel) HANDLE(cuKernelGetFunction)
HANDLE(cudaLibraryLoadData) HANDLE(cudaLibraryLoadFromFile) HANDLE(cudaLibraryGetKernel)
EXPORT int cuOccupancyMaxPotentialClusterSize(int *size, void *function, const void *launch_configuration) { *size = 8; return 0; }

static __thread struct { struct dim3 grid, block; size_t shared; void *stream; } launch;
EXPORT unsigned __cudaPushCallConfiguration(struct dim3 grid, struct dim3 block, size_t shared, void *stream) {
    launch.grid = grid;
    launch.block = block;
    launch.shared = shared;
    launch.stream = stream;
    return 0;
}
EXPORT int __cudaPopCallConfiguration(struct dim3 *grid, struct dim3 *block, size_t *shared, void **stream) {
    *grid = launch.grid;
    *block = launch.block;
    *shared = launch.shared;
    *stream = launch.stream;
    return 0;
}
EXPORT void **__cudaRegisterFatBinary(void *binary) { static void *handle; return &handle; }
EXPORT int __cudaGetKernel(const void **kernel, const void *function) { *kernel = function; return 0; }
EXPORT int cudaGetSymbolAddress(void **p, const void *symbol) { static uint64_t zeros[512]; *p = zeros; return 0; }

static long nothing(void) { return 0; }
static int entry_point(const char *symbol, void **function, int *status) {
    *function = dlsym(RTLD_DEFAULT, symbol);
    if (!*function) *function = (void *)nothing;
    if (status) *status = 0;
    return 0;
}
EXPORT int cudaGetDriverEntryPoint(const char *symbol, void **f, unsigned long long flags, int *status) {
    return entry_point(symbol, f, status);
}
EXPORT int cudaGetDriverEntryPoint_ptsz(const char *symbol, void **f, unsigned long long flags, int *status) {
    return entry_point(symbol, f, status);
}
EXPORT int cudaGetDriverEntryPointByVersion(const char *symbol, void **f, unsigned version, unsigned long long flags, int *status) {
    return entry_point(symbol, f, status);
}

/* ---- cuBLAS, cuSOLVER, cuSPARSE: handles and descriptors are small pieces of host memory ------------------------- */

#define OPAQUE(name) EXPORT int name(void **p) { MAY_FAIL(#name); *p = calloc(1, 256); return 0; }
#define DISPOSE(name) EXPORT int name(void *p) { free(p); return 0; }
OPAQUE(cublasCreate_v2) DISPOSE(cublasDestroy_v2)
OPAQUE(cublasLtCreate) DISPOSE(cublasLtDestroy)
OPAQUE(cublasLtMatmulDescCreate) DISPOSE(cublasLtMatmulDescDestroy)
OPAQUE(cublasLtMatmulPreferenceCreate) DISPOSE(cublasLtMatmulPreferenceDestroy)
OPAQUE(cublasLtMatrixLayoutCreate) DISPOSE(cublasLtMatrixLayoutDestroy)
OPAQUE(cusolverDnCreate) DISPOSE(cusolverDnDestroy)
OPAQUE(cusparseCreate) DISPOSE(cusparseDestroy)
EXPORT int cublasGetPointerMode_v2(void *h, int *mode) { *mode = 0; return 0; }
EXPORT int cublasGetMathMode(void *h, int *mode) { *mode = 0; return 0; }
EXPORT int cublasLtMatmulAlgoGetHeuristic(void *h, void *operation, void *a, void *b, void *c, void *d, void *preference,
                                          int wanted, void *results, int *found) {
    *found = 1; /* the caller's array starts as zeros: state success, workspace 0 */
    return 0;
}

/* ---- cuDNN: every plan is found, none needs a workspace ---------------------------------------------------------- */

OPAQUE(cudnnCreate) DISPOSE(cudnnDestroy)
OPAQUE(cudnnCreateTensorDescriptor) DISPOSE(cudnnDestroyTensorDescriptor)
OPAQUE(cudnnCreateFilterDescriptor) DISPOSE(cudnnDestroyFilterDescriptor)
OPAQUE(cudnnCreateConvolutionDescriptor) DISPOSE(cudnnDestroyConvolutionDescriptor)
OPAQUE(cudnnCreateActivationDescriptor) DISPOSE(cudnnDestroyActivationDescriptor)
OPAQUE(cudnnCreateDropoutDescriptor) DISPOSE(cudnnDestroyDropoutDescriptor)
OPAQUE(cudnnCreatePoolingDescriptor) DISPOSE(cudnnDestroyPoolingDescriptor)
OPAQUE(cudnnCreateRNNDescriptor) DISPOSE(cudnnDestroyRNNDescriptor)
OPAQUE(cudnnCreateRNNDataDescriptor) DISPOSE(cudnnDestroyRNNDataDescriptor)
OPAQUE(cudnnCreateSpatialTransformerDescriptor) DISPOSE(cudnnDestroySpatialTransformerDescriptor)
OPAQUE(cudnnCreateCTCLossDescriptor) DISPOSE(cudnnDestroyCTCLossDescriptor)
EXPORT int cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(void *h, int mode, int ops, void *x, void *z, void *y, void *s, void *a, size_t *bytes) { *bytes = 0; return 0; }
EXPORT int cudnnGetBatchNormalizationBackwardExWorkspaceSize(void *h, int mode, int ops, void *x, void *y, void *dy, void *dz, void *dx, void *s, void *a, size_t *bytes) { *bytes = 0; return 0; }
EXPORT int cudnnGetBatchNormalizationTrainingExReserveSpaceSize(void *h, int mode, int ops, void *a, void *x, size_t *bytes) { *bytes = 0; return 0; }
EXPORT int cudnnDropoutGetStatesSize(void *h, size_t *bytes) { *bytes = 0; return 0; }

/* With a description of the device in BENCH_STUB_CUDNN_DEVICE, the backend calls go to the wheel's own cuDNN, which then
 * runs its heuristics for that device and says what its plans need; nothing is executed. The numbers are those of
 * cudnn_graph.h: descriptors 2 engine, 4 heuristics, 5 plan, 38 device; attributes 1307, 204, 407 the device of the
 * first three; 400, 800 and 2701 handles, which need a real device; 2702 the device as JSON; types 15 descriptor, 24 text. */
static struct {
    int (*create)(int, void **), (*destroy)(void *), (*finalize)(void *);
    int (*set)(void *, int, int, int64_t, const void *), (*get)(void *, int, int, int64_t, int64_t *, void *);
    void *device;
} wheel;
static pthread_once_t wheel_once = PTHREAD_ONCE_INIT;

static void open_wheel(void) {
    const char *text = getenv("BENCH_STUB_CUDNN_DEVICE");
    void *library = text && *text ? dlopen("libcudnn.so.9", RTLD_LAZY | RTLD_NOLOAD) : NULL;
    if (!library) return;
    *(void **)&wheel.create = dlsym(library, "cudnnBackendCreateDescriptor");
    *(void **)&wheel.destroy = dlsym(library, "cudnnBackendDestroyDescriptor");
    *(void **)&wheel.finalize = dlsym(library, "cudnnBackendFinalize");
    *(void **)&wheel.set = dlsym(library, "cudnnBackendSetAttribute");
    *(void **)&wheel.get = dlsym(library, "cudnnBackendGetAttribute");
    void *description = NULL;
    if (wheel.create(38, &description) || wheel.set(description, 2702, 24, (int64_t)strlen(text), text) || wheel.finalize(description)) {
        fprintf(stderr, "stub driver: cuDNN does not take BENCH_STUB_CUDNN_DEVICE\n");
        abort();
    }
    wheel.device = description;
}
static int uses_wheel(void) {
    pthread_once(&wheel_once, open_wheel);
    return wheel.device != NULL;
}

EXPORT int cudnnBackendCreateDescriptor(int type, void **p) {
    if (!uses_wheel()) {
        *p = calloc(1, 256);
        return 0;
    }
    int status = wheel.create(type, p), attribute = type == 2 ? 1307 : type == 4 ? 204 : type == 5 ? 407 : 0;
    if (!status && attribute) wheel.set(*p, attribute, 15, 1, &wheel.device);
    return status;
}
EXPORT int cudnnBackendDestroyDescriptor(void *p) {
    if (uses_wheel()) return wheel.destroy(p);
    free(p);
    return 0;
}
EXPORT int cudnnBackendFinalize(void *p) { return uses_wheel() ? wheel.finalize(p) : 0; }
EXPORT int cudnnBackendSetAttribute(void *p, int name, int type, int64_t count, const void *values) {
    if (!uses_wheel() || name == 400 || name == 800 || name == 2701) return 0;
    return wheel.set(p, name, type, count, values);
}
EXPORT int cudnnBackendExecute(void *handle, void *plan, void *pack) { MAY_FAIL("cudnnBackendExecute"); return 0; }

/* One result for a query of descriptors (heuristics, the engine of a configuration), zero for a number (the bytes of
 * shared memory; those of a plan's workspace, attribute 402, are BENCH_STUB_WORKSPACE_BYTES), none of everything else
 * (notes, knobs). Types: CUDNN_TYPE_INT64 3, CUDNN_TYPE_BACKEND_DESCRIPTOR 15, CUDNN_TYPE_INT32 23. */
EXPORT int cudnnBackendGetAttribute(void *descriptor, int name, int type, int64_t wanted, int64_t *count, void *values) {
    if (uses_wheel()) return wheel.get(descriptor, name, type, wanted, count, values);
    if (count) *count = type == 3 || type == 15 || type == 23;
    if (type == 3 && values && wanted > 0) *(int64_t *)values = name == 402 ? (int64_t)number("WORKSPACE_BYTES", 0) : 0;
    if (type == 23 && values && wanted > 0) *(int32_t *)values = 0;
    return 0;
}
