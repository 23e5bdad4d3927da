// An interposing PKCS#11 v2.40 module: it passes calls on to a real one and misbehaves as told.
// Beside its own file F, F.conf names the real module on its first line; a second line, if
// any, is the string to initialise it with. F.ctl is mapped: faults come in and counts go out.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

// Every parameter of PKCS#11 is a pointer, an unsigned long or, once, a byte passed as either.
typedef uintptr_t W;
typedef _Atomic uint64_t U;

// All functions in the order of CK_FUNCTION_LIST, each with its number of parameters.
#define FUNCTIONS \
	X(C_Initialize, 1) X(C_Finalize, 1) X(C_GetInfo, 1) X(C_GetFunctionList, 1) \
	X(C_GetSlotList, 3) X(C_GetSlotInfo, 2) X(C_GetTokenInfo, 2) X(C_GetMechanismList, 3) \
	X(C_GetMechanismInfo, 3) X(C_InitToken, 4) X(C_InitPIN, 3) X(C_SetPIN, 5) \
	X(C_OpenSession, 5) X(C_CloseSession, 1) X(C_CloseAllSessions, 1) X(C_GetSessionInfo, 2) \
	X(C_GetOperationState, 3) X(C_SetOperationState, 5) X(C_Login, 4) X(C_Logout, 1) \
	X(C_CreateObject, 4) X(C_CopyObject, 5) X(C_DestroyObject, 2) X(C_GetObjectSize, 3) \
	X(C_GetAttributeValue, 4) X(C_SetAttributeValue, 4) X(C_FindObjectsInit, 3) \
	X(C_FindObjects, 4) X(C_FindObjectsFinal, 1) X(C_EncryptInit, 3) X(C_Encrypt, 5) \
	X(C_EncryptUpdate, 5) X(C_EncryptFinal, 3) X(C_DecryptInit, 3) X(C_Decrypt, 5) \
	X(C_DecryptUpdate, 5) X(C_DecryptFinal, 3) X(C_DigestInit, 2) X(C_Digest, 5) \
	X(C_DigestUpdate, 3) X(C_DigestKey, 2) X(C_DigestFinal, 3) X(C_SignInit, 3) X(C_Sign, 5) \
	X(C_SignUpdate, 3) X(C_SignFinal, 3) X(C_SignRecoverInit, 3) X(C_SignRecover, 5) \
	X(C_VerifyInit, 3) X(C_Verify, 5) X(C_VerifyUpdate, 3) X(C_VerifyFinal, 3) \
	X(C_VerifyRecoverInit, 3) X(C_VerifyRecover, 5) X(C_DigestEncryptUpdate, 5) \
	X(C_DecryptDigestUpdate, 5) X(C_SignEncryptUpdate, 5) X(C_DecryptVerifyUpdate, 5) \
	X(C_GenerateKey, 5) X(C_GenerateKeyPair, 8) X(C_WrapKey, 6) X(C_UnwrapKey, 8) \
	X(C_DeriveKey, 6) X(C_SeedRandom, 3) X(C_GenerateRandom, 3) X(C_GetFunctionStatus, 1) \
	X(C_CancelFunction, 1) X(C_WaitForSlotEvent, 3)

enum {
#define X(name, n) I_##name,
	FUNCTIONS
#undef X
	NFUNCTIONS
};

// The layout of F.ctl is that of type control in fault.go.
static struct control {
	U drops, overlaps, flip, garble, token_flags, reserved[3];
	U mechanism[16][2]; // type + 1, flags taken away
	U attribute[16][2]; // type + 1, value + 1
	struct function { U calls, running, max, hang, delay, rule, reserved[2]; } function[NFUNCTIONS];
} *ctl;

#define FOREVER UINT64_MAX
// A rule: rv in bits 0 to 31, calls in 32 to 46, calls to skip first in 47 to 62, after in 63.
#define RULE_CALL (1ull << 32)
#define RULE_CALLS (0x7fffull << 32)
#define RULE_SKIP (1ull << 47)
#define RULE_SKIPS (0xffffull << 47)
#define RULE_AFTER (1ull << 63)

enum { CKR_OK = 0, CKR_GENERAL_ERROR = 5, CKR_FUNCTION_FAILED = 6, CKR_ENCRYPTED_DATA_INVALID = 0x40,
	CKR_ENCRYPTED_DATA_LEN_RANGE = 0x41, CKR_MECHANISM_INVALID = 0x70, CKR_BUFFER_TOO_SMALL = 0x150 };

static W (*real[NFUNCTIONS])();
static char *init_string;
static pthread_rwlock_t gate = PTHREAD_RWLOCK_INITIALIZER; // held for writing where no call may be inside
static U drops_seen, inside, closing;

static int take(U *n) {
	uint64_t v = atomic_load(n);
	while (v)
		if (v == FOREVER || atomic_compare_exchange_weak(n, &v, v - 1))
			return 1;
	return 0;
}

// match counts this call against the rule and returns the rule if it applies, or 0.
static uint64_t match(U *rule) {
	uint64_t v = atomic_load(rule);
	for (;;) {
		if (!(v & RULE_CALLS))
			return 0;
		if (v & RULE_SKIPS) {
			if (atomic_compare_exchange_weak(rule, &v, v - RULE_SKIP))
				return 0;
		} else if ((v & RULE_CALLS) == RULE_CALLS || atomic_compare_exchange_weak(rule, &v, v - RULE_CALL)) {
			return v;
		}
	}
}

static void nap(uint64_t ns) {
	struct timespec ts = { (time_t)(ns / 1000000000), (long)(ns % 1000000000) };
	nanosleep(&ts, NULL);
}

static void close_all(void) {
	W n = 64, slots[64];
	if (real[I_C_GetSlotList](0, slots, &n) == CKR_OK)
		for (W i = 0; i < n; i++)
			real[I_C_CloseAllSessions](slots[i]);
}

// lock enters the gate, and first drops the sessions if that was asked for.
static void lock(int exclusive) {
	for (;;) {
		exclusive ? pthread_rwlock_wrlock(&gate) : pthread_rwlock_rdlock(&gate);
		if (atomic_load(&ctl->drops) == atomic_load(&drops_seen))
			return;
		if (!exclusive) {
			pthread_rwlock_unlock(&gate);
			pthread_rwlock_wrlock(&gate);
		}
		uint64_t drops = atomic_load(&ctl->drops);
		if (drops != atomic_load(&drops_seen)) {
			close_all();
			atomic_store(&drops_seen, drops);
		}
		if (exclusive)
			return;
		pthread_rwlock_unlock(&gate);
	}
}

// denied returns the flags that were taken away from a mechanism.
static uint64_t denied(W type) {
	for (int i = 0; i < 16; i++)
		if (atomic_load(&ctl->mechanism[i][0]) == (uint64_t)type + 1)
			return atomic_load(&ctl->mechanism[i][1]);
	return 0;
}

// use returns the mechanism flag that function i needs; the mechanism is its second argument.
static uint64_t use(int i) {
	switch (i) {
	case I_C_EncryptInit: return 0x100;
	case I_C_DecryptInit: return 0x200;
	case I_C_DigestInit: return 0x400;
	case I_C_SignInit: return 0x800;
	case I_C_SignRecoverInit: return 0x1000;
	case I_C_VerifyInit: return 0x2000;
	case I_C_VerifyRecoverInit: return 0x4000;
	case I_C_GenerateKey: return 0x8000;
	case I_C_GenerateKeyPair: return 0x10000;
	case I_C_WrapKey: return 0x20000;
	case I_C_UnwrapKey: return 0x40000;
	case I_C_DeriveKey: return 0x80000;
	}
	return 0;
}

static W mechanism_list(W slot, W *list, W *count) {
	W n = 0, kept = 0, rv = real[I_C_GetMechanismList](slot, 0, &n);
	if (rv != CKR_OK)
		return rv;
	W *all = calloc(n + 1, sizeof *all);
	rv = real[I_C_GetMechanismList](slot, all, &n);
	for (W i = 0; i < n; i++)
		if (denied(all[i]) != FOREVER)
			all[kept++] = all[i];
	if (rv == CKR_OK && list) {
		if (*count < kept)
			rv = CKR_BUFFER_TOO_SMALL;
		else
			memcpy(list, all, kept * sizeof *all);
	}
	*count = kept;
	free(all);
	return rv;
}

// garble makes a success of whatever a decryption came to, with random bytes for a plaintext.
static W garble(W rv, uint8_t *out, W *len, W room) {
	int fd;
	uint32_t r = 0;
	if (rv != CKR_OK && rv != CKR_GENERAL_ERROR && rv != CKR_FUNCTION_FAILED &&
	    rv != CKR_ENCRYPTED_DATA_INVALID && rv != CKR_ENCRYPTED_DATA_LEN_RANGE)
		return rv;
	if ((fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC)) < 0)
		abort();
	if (read(fd, &r, sizeof r) != sizeof r || read(fd, out, room) != (ssize_t)room)
		abort();
	close(fd);
	*len = room > 11 ? r % (room - 10) : 0; // what PKCS #1 v1.5 has room for
	return CKR_OK;
}

static W forward(int i, int n, const W *a) {
	switch (n) {
	case 1: return real[i](a[0]);
	case 2: return real[i](a[0], a[1]);
	case 3: return real[i](a[0], a[1], a[2]);
	case 4: return real[i](a[0], a[1], a[2], a[3]);
	case 5: return real[i](a[0], a[1], a[2], a[3], a[4]);
	case 6: return real[i](a[0], a[1], a[2], a[3], a[4], a[5]);
	default: return real[i](a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]);
	}
}

// pass makes the real call, changed as told.
static W pass(int i, int n, W *a) {
	W rv, room = 0, args[6] = { 0, 0, 0, 0, 2, 0 }; // CK_C_INITIALIZE_ARGS; CKF_OS_LOCKING_OK

	if (use(i) && a[1] && denied(*(W *)a[1]) & use(i))
		return CKR_MECHANISM_INVALID;
	switch (i) {
	case I_C_Initialize:
		if (init_string) {
			if (a[0])
				memcpy(args, (void *)a[0], sizeof args);
			args[5] = (W)init_string;
			a[0] = (W)args;
		}
		break;
	case I_C_GetMechanismList:
		return mechanism_list(a[0], (W *)a[1], (W *)a[2]);
	case I_C_GetMechanismInfo:
		if (denied(a[1]) == FOREVER)
			return CKR_MECHANISM_INVALID;
		break;
	case I_C_Decrypt:
		if (a[4])
			room = *(W *)a[4];
		break;
	}

	rv = forward(i, n, a);

	if (i == I_C_Decrypt && a[3] && rv != CKR_BUFFER_TOO_SMALL && take(&ctl->garble))
		return garble(rv, (uint8_t *)a[3], (W *)a[4], room);
	if (i == I_C_GetAttributeValue) {
		W(*t)[3] = (W(*)[3])a[2]; // type, value, length
		for (W k = 0; t && k < a[3]; k++)
			for (int j = 0; j < 16; j++) {
				uint64_t v = atomic_load(&ctl->attribute[j][1]);
				if (v && atomic_load(&ctl->attribute[j][0]) == (uint64_t)t[k][0] + 1 && t[k][1] && t[k][2] == 1)
					*(uint8_t *)t[k][1] = (uint8_t)(v - 1);
			}
	}
	if (rv != CKR_OK)
		return rv;
	switch (i) {
	case I_C_Sign:
		if (a[3] && take(&ctl->flip))
			((uint8_t *)a[3])[*(W *)a[4] / 2] ^= 1;
		break;
	case I_C_SignFinal:
		if (a[1] && take(&ctl->flip))
			((uint8_t *)a[1])[*(W *)a[2] / 2] ^= 1;
		break;
	case I_C_GetTokenInfo:
		*(W *)(a[1] + 96) |= (W)atomic_load(&ctl->token_flags); // after label, maker, model, serial
		break;
	case I_C_GetMechanismInfo:
		((W *)a[2])[2] &= ~(W)denied(a[1]);
		break;
	}
	return CKR_OK;
}

static W call(int i, int n, W *a) {
	struct function *f = &ctl->function[i];
	int exclusive = i == I_C_Finalize || i == I_C_CloseAllSessions;
	W rv;

	uint64_t running = atomic_fetch_add(&f->running, 1) + 1, max = atomic_load(&f->max);
	while (max < running && !atomic_compare_exchange_weak(&f->max, &max, running))
		;
	atomic_fetch_add(&f->calls, 1);
	if (exclusive)
		atomic_fetch_add(&closing, 1);
	if (atomic_fetch_add(&inside, 1) && atomic_load(&closing))
		atomic_fetch_add(&ctl->overlaps, 1);

	// Outside the gate: a hung call holds nobody else up.
	while (atomic_load(&f->hang))
		nap(200000);
	nap(atomic_load(&f->delay));

	uint64_t rule = match(&f->rule);
	if (rule && !(rule & RULE_AFTER)) {
		rv = (uint32_t)rule;
	} else {
		lock(exclusive);
		rv = pass(i, n, a);
		pthread_rwlock_unlock(&gate);
		if (rule)
			rv = (uint32_t)rule;
	}
	if (exclusive)
		atomic_fetch_sub(&closing, 1);
	atomic_fetch_sub(&inside, 1);
	atomic_fetch_sub(&f->running, 1);
	return rv;
}

#define P1 W a
#define P2 P1, W b
#define P3 P2, W c
#define P4 P3, W d
#define P5 P4, W e
#define P6 P5, W f
#define P8 P6, W g, W h
#define A1 a
#define A2 A1, b
#define A3 A2, c
#define A4 A3, d
#define A5 A4, e
#define A6 A5, f
#define A8 A6, g, h
#define X(name, n) static W my_##name(P##n) { W args[] = { A##n }; return call(I_##name, n, args); }
FUNCTIONS
#undef X

W C_GetFunctionList(W *list);

static struct {
	unsigned char version[2];
	void *function[NFUNCTIONS];
} functions = { { 2, 40 }, {
#define X(name, n) (void *)my_##name,
	FUNCTIONS
#undef X
} };

static int ready;

// line returns the next line of f, or NULL at its end.
static char *line(FILE *f) {
	char *s = NULL;
	size_t size = 0;
	ssize_t n = getline(&s, &size, f);
	if (n > 0 && s[n - 1] == '\n')
		s[--n] = 0;
	return n > 0 ? s : NULL;
}

static void load(void) {
	Dl_info self;
	char path[4096];
	if (!dladdr((void *)load, &self) || strlen(self.dli_fname) > sizeof path - 8)
		return;
	if (!dlopen(self.dli_fname, RTLD_NOW)) // never closed: what is counted here stays loaded
		return;

	snprintf(path, sizeof path, "%s.ctl", self.dli_fname);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return;
	ctl = mmap(NULL, sizeof *ctl, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (ctl == MAP_FAILED)
		return;
	atomic_store(&drops_seen, atomic_load(&ctl->drops));

	snprintf(path, sizeof path, "%s.conf", self.dli_fname);
	FILE *f = fopen(path, "re");
	char *module = f ? line(f) : NULL;
	if (!module)
		return;
	init_string = line(f);
	fclose(f);

	void *lib = dlopen(module, RTLD_NOW | RTLD_LOCAL);
	W (*get)(void *) = lib ? (W(*)(void *))dlsym(lib, "C_GetFunctionList") : NULL;
	struct { unsigned char version[2]; void *function[NFUNCTIONS]; } *list;
	if (!get || get(&list) != CKR_OK) {
		fprintf(stderr, "interpose: %s: %s\n", module, dlerror());
		return;
	}
	memcpy(real, list->function, sizeof real);
	functions.function[I_C_GetFunctionList] = (void *)C_GetFunctionList;
	ready = 1;
}

__attribute__((visibility("default"))) W C_GetFunctionList(W *list) {
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	pthread_once(&once, load);
	if (!ready)
		return CKR_GENERAL_ERROR;
	atomic_fetch_add(&ctl->function[I_C_GetFunctionList].calls, 1);
	*list = (W)&functions;
	return CKR_OK;
}
