/* A small libnvidia-ml.so.1 for tests: what it says is read from the file in FAKE_NVML at each call.
 *
 *   count=8   0.temperature=41   0.field.230=0   1.handle=!15   0.ecc=block
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

/* The text behind KEY= ; the return code of the call. */
static int look(const char *key, char *text, size_t size) {
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
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
    (void)type, (void)counter;
    return of_device(device, "ecc", count);
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

unsigned long fake_size_of_field(void) { return sizeof(struct field); }
