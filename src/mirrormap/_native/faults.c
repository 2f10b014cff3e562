/* Errors on demand, for tests: which call is made to fail, and how often that happened. */
#define _GNU_SOURCE
#include "faults.h"
#include "sys.h"

#include <string.h>

#ifdef MIRRORMAP_FAULTS
static struct {
    char call[24], then[24];
    long nth, seen;
    int error, hits;
    const char *first;
} fault;

void mm_fault_arm(const char *call, long nth, int error, const char *then)
{
    memset(&fault, 0, sizeof fault);
    strncpy(fault.call, call, sizeof fault.call - 1);
    strncpy(fault.then, then, sizeof fault.then - 1);
    fault.nth = nth;
    fault.error = error;
    fault.first = "";
}

int mm_fault_hits(const char **first)
{
    *first = fault.first != NULL ? fault.first : "";
    return fault.hits;
}

int mm_fault_due(const char *call)
{
    if (fault.hits == 1 && strcmp(fault.then, call) == 0) {
        fault.hits = 2;
        return fault.error;
    }
    if (fault.hits != 0 || fault.call[0] == '\0'
        || (fault.call[0] != '*' && strcmp(fault.call, call) != 0) || ++fault.seen != fault.nth)
        return 0;
    fault.hits = 1;
    fault.first = call;
    return fault.error;
}
#else
typedef int mm_no_faults; /* a translation unit may not be empty */
#endif
