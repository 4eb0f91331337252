/* The management library of a device that does not exist (NVML), beside driver.c in the stub driver's one library.
 *
 * BENCH_STUB_NVML=1 lets it start; without, it answers as a library too old to be asked (13), and torch, which asks under
 * older names, finds one device. Readings are of a board under load and never change, but for the energy counter, which
 * adds a joule a call, and memory, which is what this process, its context and BENCH_STUB_OTHERS_BYTES hold.
 *
 * BENCH_STUB_OTHERS_PID: another process on the device, which holds BENCH_STUB_OTHERS_BYTES.
 * BENCH_STUB_NVML_FAULT=function:code or function:code:n: from its n-th call in a process on, that function answers with
 * code (nvml.h, nvmlReturn_enum), or never where code is `hang`. `*` is every function.
 * Where the file BENCH_STUB_LOST_FILE is there, the GPU is lost and all but the start answers 15.
 *
 * With BENCH_STUB_BOARD_UUID, _BOARD_NAME and _BOARD_BYTES, the devices are slices of that board: readings and settings
 * are the board's alone, and half of its memory is in use. BENCH_STUB_BOARD_ONLY=1 hides the slices, as from a container,
 * and CUDA gives the board's UUID, as before version 12.
 * BENCH_STUB_INTEGRATED=1: memory is not supported; 2: supported, and all zeros. BENCH_STUB_ALLOWED_BYTES: the total that
 * version 2 of the memory shows, of a control group.
 *
 * BENCH_STUB_NVML_CALLS=old: functions and field values that came with CUDA 13 and its drivers are not there (13); =new:
 * those that CUDA 14 drops are not. BENCH_STUB_SETTINGS=1: every setting that can be changed was (and 2 is the answer of
 * a board that has none of them, 3). BENCH_STUB_DRIVER: the driver's version.
 *
 * Layouts are those of nvml.h as nvidia-ml-py declares them.
 */
#include <stdio.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define NOT_SUPPORTED 3
#define NOT_FOUND 6
#define INSUFFICIENT_SIZE 7
#define FUNCTION_NOT_FOUND 13
#define GPU_IS_LOST 15
#define HANDLE(k) ((void *)(intptr_t)(1 + (k)))
#define DEVICE(d) ((int)(intptr_t)(d) - 1)
#define BOARD 1000 /* the number of the board that the devices are slices of */

extern __attribute__((visibility("hidden"))) const char *stub_text(int k, const char *key, const char *otherwise);
extern __attribute__((visibility("hidden"))) int stub_devices(void);
extern __attribute__((visibility("hidden"))) void stub_memory(int k, uint64_t *total, uint64_t *own, uint64_t *others);
extern __attribute__((visibility("hidden"))) int stub_is_lost(void);
extern int cudaDriverGetVersion(int *v);

/* The planned fault of `function`, 0 where it is well; does not return where it is to hang. */
static int fault(const char *function, int *calls) {
    char name[128] = "", code[32] = "";
    int from = 1;
    const char *plan = getenv("BENCH_STUB_NVML_FAULT");
    int count = __sync_add_and_fetch(calls, 1);
    if (!plan || sscanf(plan, "%127[^:]:%31[^:]:%d", name, code, &from) < 2) return 0;
    if ((strcmp(name, "*") && strcmp(name, function)) || count < from) return 0;
    while (!strcmp(code, "hang")) sleep(1);
    return atoi(code);
}

#define ANSWER(...)                                                                                                    \
    static int calls;                                                                                                  \
    int code = fault(__func__, &calls);                                                                                \
    if (code) return code;                                                                                             \
    if (stub_is_lost()) return GPU_IS_LOST;                                                                            \
    __VA_ARGS__;                                                                                                       \
    return 0
#define START(...)                                                                                                     \
    static int calls;                                                                                                  \
    int code = fault(__func__, &calls);                                                                                \
    if (code) return code;                                                                                             \
    __VA_ARGS__;                                                                                                       \
    return 0

/* Of a board: no slice has it. */
#define OF_BOARD(...) ANSWER(if (is_slice(d)) return NOT_SUPPORTED; __VA_ARGS__)

/* Of a board: what CUDA 14 drops, and what came to take its place. */
#define DROPPED(...) if (*setting("BENCH_STUB_NVML_CALLS", "") == 'n') return FUNCTION_NOT_FOUND; OF_BOARD(__VA_ARGS__)
#define CAME(...) if (*setting("BENCH_STUB_NVML_CALLS", "") == 'o') return FUNCTION_NOT_FOUND; OF_BOARD(__VA_ARGS__)

static int text(char *to, unsigned length, const char *from) {
    snprintf(to, length, "%s", from);
    return 0;
}
static const char *setting(const char *key, const char *otherwise) {
    const char *value = getenv(key);
    return value && *value ? value : otherwise;
}

static int has_slices(void) { return *setting("BENCH_STUB_BOARD_UUID", "") != 0; }
static int shows_slices(void) { return has_slices() && *setting("BENCH_STUB_BOARD_ONLY", "0") != '1'; }
static int is_slice(void *d) { return has_slices() && DEVICE(d) != BOARD; }
static const char *named(void *d, const char *key) {
    char name[64];
    snprintf(name, sizeof name, "BENCH_STUB_BOARD_%s", key);
    return DEVICE(d) == BOARD ? setting(name, "") : stub_text(DEVICE(d), key, "");
}

EXPORT int nvmlInitWithFlags(unsigned flags) {
    static int calls;
    int code = fault(__func__, &calls);
    return code ? code : *setting("BENCH_STUB_NVML", "0") == '1' ? 0 : FUNCTION_NOT_FOUND;
}
EXPORT int nvmlInit(void) { START(); }
EXPORT int nvmlInit_v2(void) { START(); }
EXPORT int nvmlShutdown(void) { START(); }
EXPORT const char *nvmlErrorString(int code) {
    switch (code) { /* as the driver's */
        case 3: return "Not Supported";
        case 6: return "Not Found";
        case 9: return "Driver Not Loaded";
        case 12: return "NVML Shared Library Not Found";
        case 13: return "Function Not Found";
        case 15: return "GPU is lost";
        case 18: return "Driver/library version mismatch";
        case 999: return "Unknown Error";
        default: return "an error of the stub's";
    }
}
EXPORT int nvmlSystemGetDriverVersion(char *to, unsigned length) { START(text(to, length, setting("BENCH_STUB_DRIVER", "580.95.05"))); }
EXPORT int nvmlSystemGetCudaDriverVersion_v2(int *v) { return cudaDriverGetVersion(v); }

/* Which devices there are */
EXPORT int nvmlDeviceGetCount_v2(unsigned *n) { START(*n = has_slices() ? 1 : (unsigned)stub_devices()); }
EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **d) { ANSWER(*d = HANDLE(has_slices() ? BOARD : (int)index)); }
EXPORT int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **d) { /* 0000:01:00.0 is the first */
    ANSWER(const char *colon = strchr(bus, ':'); *d = HANDLE(colon ? (int)strtol(colon + 1, NULL, 16) - 1 : 0));
}
EXPORT int nvmlDeviceGetHandleByUUID(const char *uuid, void **d) {
    ANSWER(if (has_slices() && !strcmp(uuid, named(HANDLE(BOARD), "UUID"))) return *d = HANDLE(BOARD), 0;
           int k = 0; while (k < stub_devices() && strcmp(uuid, stub_text(k, "UUID", ""))) k++;
           if (k == stub_devices() || (has_slices() && !shows_slices())) return NOT_FOUND; *d = HANDLE(k));
}
struct place { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; };
EXPORT int nvmlDeviceGetPciInfo_v3(void *d, struct place *place) {
    ANSWER(memset(place, 0, sizeof *place); place->bus = (unsigned)DEVICE(d) + 1;
           snprintf(place->bus_id, sizeof place->bus_id, "00000000:%02X:00.0", place->bus));
}
EXPORT int nvmlDeviceGetUUID(void *d, char *to, unsigned length) { ANSWER(text(to, length, named(d, "UUID"))); }
EXPORT int nvmlDeviceGetName(void *d, char *to, unsigned length) { ANSWER(text(to, length, named(d, "NAME"))); }
EXPORT int nvmlDeviceGetCudaComputeCapability(void *d, int *major, int *minor) {
    ANSWER(*major = atoi(stub_text(DEVICE(d), "CAPABILITY_MAJOR", "9")); *minor = atoi(stub_text(DEVICE(d), "CAPABILITY_MINOR", "0")));
}
EXPORT int nvmlDeviceGetMigMode(void *d, unsigned *now, unsigned *later) { OF_BOARD(*now = *later = DEVICE(d) == BOARD); }
EXPORT int nvmlDeviceIsMigDeviceHandle(void *d, unsigned *is) { ANSWER(*is = is_slice(d)); }
EXPORT int nvmlDeviceGetMaxMigDeviceCount(void *d, unsigned *n) { OF_BOARD(*n = DEVICE(d) == BOARD ? 7 : 0); }
EXPORT int nvmlDeviceGetMigDeviceHandleByIndex(void *d, unsigned index, void **slice) {
    OF_BOARD(if (!shows_slices() || (int)index >= stub_devices()) return NOT_FOUND; *slice = HANDLE((int)index));
}
EXPORT int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(void *d, void **board) { ANSWER(*board = HANDLE(BOARD)); }

/* Settings */
static int changed_settings(void) { return *setting("BENCH_STUB_SETTINGS", "0") == '1'; }
static int no_settings(void) { return *setting("BENCH_STUB_SETTINGS", "0") == '2'; }
EXPORT int nvmlDeviceGetEccMode(void *d, unsigned *now, unsigned *later) { OF_BOARD(*now = *later = !changed_settings()); }
EXPORT int nvmlDeviceGetPersistenceMode(void *d, unsigned *mode) { OF_BOARD(*mode = !changed_settings()); }
EXPORT int nvmlDeviceGetVbiosVersion(void *d, char *to, unsigned length) { OF_BOARD(text(to, length, "96.00.89.00.01")); }
EXPORT int nvmlDeviceGetEnforcedPowerLimit(void *d, unsigned *milliwatt) { OF_BOARD(*milliwatt = 700000); }
EXPORT int nvmlDeviceGetPowerManagementDefaultLimit(void *d, unsigned *milliwatt) { OF_BOARD(*milliwatt = 700000); }
EXPORT int nvmlDeviceGetMaxClockInfo(void *d, int which, unsigned *mhz) { OF_BOARD(*mhz = which == 2 ? 3201 : 1980); }
EXPORT int nvmlDeviceGetMaxPcieLinkGeneration(void *d, unsigned *value) { OF_BOARD(*value = 5); }
EXPORT int nvmlDeviceGetMaxPcieLinkWidth(void *d, unsigned *value) { OF_BOARD(*value = 16); }

EXPORT int nvmlDeviceGetApplicationsClock(void *d, int which, unsigned *mhz) {
    DROPPED(if (no_settings()) return NOT_SUPPORTED; *mhz = which == 2 ? 3201 : changed_settings() ? 1200 : 1980);
}
EXPORT int nvmlDeviceGetDefaultApplicationsClock(void *d, int which, unsigned *mhz) {
    DROPPED(if (no_settings()) return NOT_SUPPORTED; *mhz = which == 2 ? 3201 : 1980);
}
struct profiles { unsigned version, there[8], requested[8], enforced[8]; };
EXPORT int nvmlDeviceWorkloadPowerProfileGetCurrentProfiles(void *d, struct profiles *p) {
    CAME(if (no_settings()) return NOT_SUPPORTED; memset(&p->there, 0, sizeof *p - sizeof p->version);
         p->there[0] = 0xff; p->requested[0] = changed_settings() ? 0x82 : 0; p->enforced[0] = changed_settings() ? 0x80 : 0);
}
struct adaptive { unsigned requested, allowed, overridden, enabled, milliwatt; };
EXPORT int nvmlDeviceGetAdaptiveTgpModeInfo_v1(void *d, struct adaptive *a) {
    CAME(if (no_settings()) return NOT_SUPPORTED;
         *a = ((struct adaptive){changed_settings(), 1, 0, changed_settings(), changed_settings() ? 650000 : 0}));
}
struct confidential { unsigned version, environment, feature, tools, multi; };
EXPORT int nvmlSystemGetConfComputeSettings(struct confidential *c) {
    if (*setting("BENCH_STUB_NVML_CALLS", "") == 'o') return FUNCTION_NOT_FOUND;
    ANSWER(if (no_settings()) return NOT_SUPPORTED; c->environment = 0; c->tools = 0; c->feature = c->multi = changed_settings());
}
EXPORT int nvmlSystemGetConfComputeState(unsigned *state) {
    ANSWER(if (no_settings()) return NOT_SUPPORTED; state[0] = state[2] = 0; state[1] = changed_settings());
}

/* Readings */
EXPORT int nvmlDeviceGetClockInfo(void *d, int which, unsigned *mhz) { OF_BOARD(*mhz = which == 2 ? 3201 : 1755); }
EXPORT int nvmlDeviceGetTemperature(void *d, int sensor, unsigned *celsius) { DROPPED(*celsius = 55); }
struct temperature { unsigned version; int sensor, celsius; };
EXPORT int nvmlDeviceGetTemperatureV(void *d, struct temperature *t) { CAME(t->celsius = 55); }
EXPORT int nvmlDeviceGetPerformanceState(void *d, int *state) { CAME(*state = 0); }
EXPORT int nvmlDeviceGetPowerState(void *d, int *state) { DROPPED(*state = 0); }
EXPORT int nvmlDeviceGetPowerUsage(void *d, unsigned *milliwatt) { OF_BOARD(*milliwatt = 512000); }
EXPORT int nvmlDeviceGetTotalEnergyConsumption(void *d, unsigned long long *millijoule) {
    static unsigned long long counter = 5000000;
    OF_BOARD(*millijoule = __sync_add_and_fetch(&counter, 1000));
}
struct sample { unsigned long long microsecond; union { unsigned milliwatt; double all; } value; };
EXPORT int nvmlDeviceGetSamples(void *d, int what, unsigned long long since, int *type, unsigned *count, struct sample *list) {
    /* one a millisecond from `since` on, all of BENCH_STUB_SAMPLED_MILLIWATT; without it the driver keeps none */
    unsigned milliwatt = (unsigned)atoi(setting("BENCH_STUB_SAMPLED_MILLIWATT", "0"));
    if (!milliwatt) return NOT_SUPPORTED;
    OF_BOARD(*type = 1; if (!list) { *count = 100; return 0; }
             for (unsigned k = 0; k < *count; k++) list[k] = (struct sample){since + 1000ull * (k + 1), {.milliwatt = milliwatt}});
}
EXPORT int nvmlDeviceGetCurrentClocksEventReasons(void *d, unsigned long long *mask) { CAME(*mask = 0); }
EXPORT int nvmlDeviceGetCurrentClocksThrottleReasons(void *d, unsigned long long *mask) { DROPPED(*mask = 0); }

/* Times slowed: 5 s for heat and 9 s for power before, and 10 ms more for power with each reading of it. */
static unsigned long long slowed_ns(int for_power) {
    static unsigned long long power = 9000000000ull;
    return for_power ? __sync_add_and_fetch(&power, 10000000) : 5000000000ull;
}
EXPORT int nvmlDeviceGetViolationStatus(void *d, int policy, unsigned long long *times) {
    DROPPED(times[0] = 1; times[1] = slowed_ns(policy == 0));
}
struct field {
    unsigned id, scope;
    long long timestamp, latency;
    int type, code;
    union { double d; unsigned ui; unsigned long long ull; } value;
};
static void answer_field(struct field *f) {
    f->code = 0;
    f->type = f->id == 74 || f->id == 75 ? 3 : 1;
    if (f->type == 3) f->value.ull = slowed_ns(f->id == 74);
    else if (f->id == 251 && !no_settings()) f->value.ui = changed_settings();
    else if (f->id == 274 && !no_settings()) f->value.ui = changed_settings() ? 80 : 100;
    else f->code = NOT_SUPPORTED;
}
EXPORT int nvmlDeviceGetFieldValues(void *d, int count, struct field *list) {
    CAME(for (int k = 0; k < count; k++) answer_field(list + k));
}
EXPORT int nvmlDeviceGetCurrPcieLinkGeneration(void *d, unsigned *value) { OF_BOARD(*value = 5); }
EXPORT int nvmlDeviceGetCurrPcieLinkWidth(void *d, unsigned *value) { OF_BOARD(*value = 16); }

struct memory { unsigned long long total, free, used; };
struct memory_v2 { unsigned version; unsigned long long total, reserved, free, used; };
/* What to show of a device's memory; an answer of NVML's. */
static int memory_of(void *d, uint64_t *total, uint64_t *left) {
    uint64_t own, others;
    int integrated = atoi(stub_text(DEVICE(d), "INTEGRATED", "0"));
    if (DEVICE(d) == BOARD) {
        *total = strtoull(setting("BENCH_STUB_BOARD_BYTES", "0"), NULL, 10);
        *left = *total / 2;
        return 0;
    }
    stub_memory(DEVICE(d), total, &own, &others);
    *left = own + others < *total ? *total - own - others : 0;
    if (integrated == 2) *total = *left = 0;
    return integrated == 1 ? NOT_SUPPORTED : 0;
}
EXPORT int nvmlDeviceGetMemoryInfo(void *d, struct memory *m) {
    uint64_t total, left;
    ANSWER(int known = memory_of(d, &total, &left); if (known) return known;
           *m = ((struct memory){total, left, total - left}));
}
EXPORT int nvmlDeviceGetMemoryInfo_v2(void *d, struct memory_v2 *m) {
    uint64_t total, left;
    ANSWER(int known = memory_of(d, &total, &left); if (known) return known;
           uint64_t used = total - left;
           uint64_t allowed = strtoull(stub_text(DEVICE(d), "ALLOWED_BYTES", "0"), NULL, 10);
           if (allowed && DEVICE(d) != BOARD) total = allowed;
           *m = ((struct memory_v2){m->version, total, 0, used < total ? total - used : 0, used}));
}

struct process { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; };
EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(void *d, unsigned *count, struct process *list) {
    uint64_t total, own, others;
    stub_memory(DEVICE(d), &total, &own, &others);
    struct process all[2];
    unsigned found = 0;
    if (own) all[found++] = (struct process){(unsigned)getpid(), own, ~0u, ~0u};
    if (others) all[found++] = (struct process){(unsigned)atoi(setting("BENCH_STUB_OTHERS_PID", "1")), others, ~0u, ~0u};
    unsigned room = *count;
    ANSWER(*count = found; if (room < found) return INSUFFICIENT_SIZE; memcpy(list, all, found * sizeof *all));
}
EXPORT int nvmlDeviceGetGraphicsRunningProcesses_v3(void *d, unsigned *count, void *list) { ANSWER(*count = 0); }

/* Asked by torch alone */
EXPORT int nvmlDeviceGetComputeRunningProcesses(void *d, unsigned *count, void *list) { *count = 0; return 0; }
EXPORT int nvmlDeviceGetGpuFabricInfoV(void *d, void *information) { return NOT_SUPPORTED; }
EXPORT int nvmlDeviceGetNvLinkRemoteDeviceType(void *d, unsigned link, int *type) { return NOT_SUPPORTED; }
EXPORT int nvmlDeviceGetNvLinkRemotePciInfo_v2(void *d, unsigned link, void *information) { return NOT_SUPPORTED; }
