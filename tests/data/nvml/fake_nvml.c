/* A small libnvidia-ml.so.1 for tests: what it says is read from the file in FAKE_NVML at each call.
 *
 *   count=8   0.temperature=41   0.field.230=0   1.handle=!15   0.ecc=block
 *
 * "xid.0=1 79" is the first event, of GPU 1: told to who has registered before it was written.
 *
 * "%n" in the name of the file is the node of the Slurm job that asks.
 *
 * "!15" is the return code 15, "block" never returns, and what is not written is NOT_SUPPORTED: nothing is well unless
 * the file says so. Signatures and sizes as nvidia-ml-py declares them.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3 };

static FILE *opened(void) {
    const char *named = getenv("FAKE_NVML"), *node = getenv("SLURMD_NODENAME");
    const char *place = named ? strstr(named, "%n") : NULL;
    char path[1024];
    if (!named) return NULL;
    if (!place) return fopen(named, "r");
    snprintf(path, sizeof path, "%.*s%s%s", (int)(place - named), named, node ? node : "", place + 2);
    return fopen(path, "r");
}

/* The text behind KEY= ; the return code of the call. */
static int look(const char *key, char *text, size_t size) {
    FILE *file = opened();
    char line[256];
    size_t length = strlen(key);
    int found = 0;
    while (file && !found && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        found = !strncmp(line, key, length) && line[length] == '=';
    }
    if (file) fclose(file);
    if (!found) return NOT_SUPPORTED;
    snprintf(text, size, "%s", line + length + 1);
    if (!strcmp(text, "block")) for (;;) pause();
    return text[0] == '!' ? atoi(text + 1) : SUCCESS;
}

static int number(const char *key, unsigned long long *value) {
    char text[256];
    int code = look(key, text, sizeof text);
    if (code == SUCCESS) *value = strtoull(text, NULL, 0);
    return code;
}

/* Handles are the index of the device, plus one. */
static int of_device(uintptr_t device, const char *what, unsigned long long *value) {
    char key[64];
    snprintf(key, sizeof key, "%u.%s", (unsigned)(device - 1), what);
    return number(key, value);
}

static int of_device_32(uintptr_t device, const char *what, uint32_t *value) {
    unsigned long long wide = 0;
    int code = of_device(device, what, &wide);
    if (code == SUCCESS) *value = (uint32_t)wide;
    return code;
}

int nvmlInitWithFlags(unsigned flags) {
    unsigned long long ignored;
    int code = number("init", &ignored);
    (void)flags;
    return code == NOT_SUPPORTED ? SUCCESS : code;
}

int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int code) {
    static char text[32];
    snprintf(text, sizeof text, "simulated error %d", code);
    return text;
}

int nvmlDeviceGetCount_v2(uint32_t *count) {
    unsigned long long value = 0;
    int code = number("count", &value);
    *count = (uint32_t)value;
    return code;
}

int nvmlDeviceGetHandleByIndex_v2(uint32_t index, uintptr_t *device) {
    unsigned long long ignored;
    int code;
    *device = index + 1;
    code = of_device(*device, "handle", &ignored);
    return code == NOT_SUPPORTED ? SUCCESS : code;
}

int nvmlDeviceGetUUID(uintptr_t device, char *uuid, uint32_t length) {
    char key[64];
    snprintf(key, sizeof key, "%u.uuid", (unsigned)(device - 1));
    return look(key, uuid, length);
}

int nvmlDeviceGetTemperature(uintptr_t device, int sensor, uint32_t *degrees) {
    (void)sensor;
    return of_device_32(device, "temperature", degrees);
}

#ifndef OLD_DRIVER
struct temperature { uint32_t version; int sensor; int32_t degrees; };

int nvmlDeviceGetTemperatureV(uintptr_t device, struct temperature *temperature) {
    return of_device_32(device, "temperature", (uint32_t *)&temperature->degrees);
}

int nvmlDeviceGetCurrentClocksEventReasons(uintptr_t device, unsigned long long *reasons) {
    return of_device(device, "reasons", reasons);
}
#endif

int nvmlDeviceGetTemperatureThreshold(uintptr_t device, int threshold, uint32_t *degrees) {
    char what[32];
    snprintf(what, sizeof what, "threshold.%d", threshold);
    return of_device_32(device, what, degrees);
}

int nvmlDeviceGetTotalEccErrors(uintptr_t device, int type, int counter, unsigned long long *count) {
    (void)counter;
    return of_device(device, type ? "ecc" : "corrected", count);
}

int nvmlDeviceGetRemappedRows(uintptr_t device, uint32_t *corrected, uint32_t *uncorrected, uint32_t *pending,
                              uint32_t *failed) {
    char key[64], text[256];
    int code;
    snprintf(key, sizeof key, "%u.rows", (unsigned)(device - 1));
    code = look(key, text, sizeof text);
    if (code == SUCCESS) sscanf(text, "%u %u %u %u", corrected, uncorrected, pending, failed);
    return code;
}

int nvmlDeviceGetNvLinkState(uintptr_t device, uint32_t link, uint32_t *active) {
    char what[32];
    snprintf(what, sizeof what, "link.%u", link);
    return of_device_32(device, what, active);
}

/* Calls that give one number. */
#define NUMBER(call, key) \
    int nvmlDeviceGet##call(uintptr_t device, uint32_t *value) { return of_device_32(device, key, value); }
NUMBER(CurrPcieLinkWidth, "pcie.width")
NUMBER(MaxPcieLinkWidth, "pcie.width.max")
NUMBER(CurrPcieLinkGeneration, "pcie.generation")
NUMBER(MaxPcieLinkGeneration, "pcie.generation.max")
NUMBER(PcieReplayCounter, "pcie.replays")
NUMBER(PowerUsage, "power")
NUMBER(EnforcedPowerLimit, "power.limit")
NUMBER(PersistenceMode, "persistence")

static int of_device_twice(uintptr_t device, const char *what, uint32_t *now, uint32_t *later) {
    int code = of_device_32(device, what, now);
    if (code == SUCCESS) *later = *now;
    return code;
}

int nvmlDeviceGetMigMode(uintptr_t device, uint32_t *now, uint32_t *later) {
    return of_device_twice(device, "mig", now, later);
}

int nvmlDeviceGetEccMode(uintptr_t device, uint32_t *now, uint32_t *later) {
    return of_device_twice(device, "ecc.mode", now, later);
}

static int text_of_device(uintptr_t device, const char *what, char *text, uint32_t length) {
    char key[64];
    snprintf(key, sizeof key, "%u.%s", (unsigned)(device - 1), what);
    return look(key, text, length);
}

int nvmlDeviceGetVbiosVersion(uintptr_t device, char *text, uint32_t length) {
    return text_of_device(device, "vbios", text, length);
}

int nvmlSystemGetDriverVersion(char *text, uint32_t length) { return look("driver", text, length); }

int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    unsigned long long value = 0;
    int code = number("cuda", &value);
    *version = (int)value;
    return code;
}

struct margin { uint32_t version; int degrees; };

int nvmlDeviceGetMarginTemperature(uintptr_t device, struct margin *margin) {
    return of_device_32(device, "margin", (uint32_t *)&margin->degrees);
}

struct memory { uint32_t version; unsigned long long total, reserved, free, used; };

int nvmlDeviceGetMemoryInfo_v2(uintptr_t device, struct memory *memory) {
    memory->total = memory->reserved = memory->free = 0;
    return of_device(device, "memory.used", &memory->used);
}

struct process { uint32_t pid; unsigned long long memory; uint32_t gpu_instance, compute_instance; };

/* "processes=12 13": their pids. */
int nvmlDeviceGetComputeRunningProcesses_v3(uintptr_t device, uint32_t *count, struct process *processes) {
    char text[256], *place = text, *next;
    uint32_t room = *count, found = 0;
    int code = text_of_device(device, "processes", text, sizeof text);
    if (code != SUCCESS) return code;
    for (unsigned long pid; (pid = strtoul(place, &next, 10)), next != place; place = next, found++)
        if (found < room) processes[found] = (struct process){.pid = (uint32_t)pid};
    *count = found;
    return found > room ? 7 /* NVML_ERROR_INSUFFICIENT_SIZE */ : SUCCESS;
}

struct fabric { uint32_t version; unsigned char cluster[16]; uint32_t status, clique, state, health; };

/* "fabric=STATE STATUS CLIQUE HEALTH". */
int nvmlDeviceGetGpuFabricInfoV(uintptr_t device, struct fabric *fabric) {
    char text[256];
    int code = text_of_device(device, "fabric", text, sizeof text);
    if (code == SUCCESS)
        sscanf(text, "%u %u %u %u", &fabric->state, &fabric->status, &fabric->clique, &fabric->health);
    return code;
}

struct field {
    uint32_t id, scope;
    int64_t timestamp, latency;
    int type, code;
    union { double d; uint32_t ui; unsigned long long ull; } value;
};

/* As the real one: the call succeeds, and each field has a return code of its own beside a value of 0. */
int nvmlDeviceGetFieldValues(uintptr_t device, int32_t count, struct field *fields) {
    for (int32_t i = 0; i < count; i++) {
        char what[32];
        unsigned long long value = 0;
        snprintf(what, sizeof what, "field.%u", fields[i].id);
        fields[i].code = of_device(device, what, &value);
        fields[i].value.ull = value;
    }
    return SUCCESS;
}

struct pci { char legacy[16]; uint32_t domain, bus, device, id, subsystem; char name[32]; };

int nvmlDeviceGetPciInfo_v3(uintptr_t device, struct pci *pci) {
    return text_of_device(device, "pci", pci->name, sizeof pci->name);
}

static unsigned told; /* events */

static int event(char *text, size_t size) {
    char key[32];
    snprintf(key, sizeof key, "xid.%u", told);
    return look(key, text, size);
}

int nvmlEventSetCreate(uintptr_t *set) {
    char text[256];
    *set = 1;
    while (event(text, sizeof text) == SUCCESS) told++;
    return SUCCESS;
}

int nvmlDeviceRegisterEvents(uintptr_t device, unsigned long long types, uintptr_t set) {
    unsigned long long ignored;
    (void)types, (void)set;
    return of_device(device, "events", &ignored);
}

struct event { uintptr_t device; unsigned long long type, data; uint32_t gpu_instance, compute_instance; };

int nvmlEventSetWait_v2(uintptr_t set, struct event *data, uint32_t timeout_ms) {
    char text[256];
    unsigned gpu, xid;
    (void)set;
    for (uint32_t waited = 0; waited <= timeout_ms; waited += 20, usleep(20000))
        if (event(text, sizeof text) == SUCCESS && sscanf(text, "%u %u", &gpu, &xid) == 2) {
            told++;
            *data = (struct event){.device = gpu + 1, .type = 8 /* nvmlEventTypeXidCriticalError */, .data = xid};
            return SUCCESS;
        }
    return 10; /* NVML_ERROR_TIMEOUT */
}

/* For a test that compares them with what nvidia-ml-py declares. */
unsigned long fake_size_of_pci(void) { return sizeof(struct pci); }
unsigned long fake_size_of_event(void) { return sizeof(struct event); }
unsigned long fake_size_of_field(void) { return sizeof(struct field); }
unsigned long fake_size_of_fabric(void) { return sizeof(struct fabric); }
unsigned long fake_size_of_memory(void) { return sizeof(struct memory); }
unsigned long fake_size_of_process(void) { return sizeof(struct process); }
