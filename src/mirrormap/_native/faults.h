/* First line of each function that makes a kernel call: in the build for tests it may fail on demand. */
#ifndef MIRRORMAP_FAULTS_H
#define MIRRORMAP_FAULTS_H

#ifdef MIRRORMAP_FAULTS
int mm_fault_due(const char *call); /* the error it is to answer with, or 0 */
#define FAULT(call)                        \
    do {                                   \
        int due_ = mm_fault_due(call);     \
        if (due_ != 0)                     \
            return due_;                   \
    } while (0)
#else
#define FAULT(call) ((void)0)
#endif

#endif
