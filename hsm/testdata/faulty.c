// A PKCS#11 module for tests: SoftHSM behind a layer of faults.
//
// Every call passes to the library named by FAULTY_REAL unless the file named by FAULTY_CONTROL, shared memory of the struct below,
// asks for a fault. The layer also watches how it is used: a session in two calls at once, or C_Finalize beside another call, is counted
// as a violation (SoftHSM would often crash).
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

typedef unsigned long ck;
typedef ck (*fn)(ck, ck, ck, ck, ck, ck, ck, ck);

enum { functions = 68, finalize = 1, get_token_info = 6, close_all = 14, sign = 43, first_session = 13, last_session = 62 };
enum { pass = 0, fail = 1, fail_after = 2, hang = 3, corrupt = 4, set_flags = 5 };

struct control {
	_Atomic uint64_t violations;
	_Atomic uint64_t hanging; // calls held now by the mode hang
	_Atomic uint64_t frozen;  // no call begins while this is set
	_Atomic int64_t inside;   // calls that have begun
	struct {
		_Atomic uint64_t calls;
		_Atomic uint64_t mode;
		_Atomic int64_t count; // calls that mode is for; negative: all
		_Atomic uint64_t code; // return value, or token flags
	} f[functions];
};

struct list { unsigned char version[2]; fn f[functions]; };

static struct control *control;
static struct list *real, mine;
static _Atomic int finalizing;
static _Atomic int busy[1 << 16];

static ck through(int i, ck a, ck b, ck c, ck d, ck e, ck g, ck h, ck j)
{
	int has_session = i >= first_session && i <= last_session && i != close_all;
	atomic_fetch_add(&control->f[i].calls, 1);
	int64_t others = atomic_fetch_add(&control->inside, 1);
	while (atomic_load(&control->frozen)) {
		atomic_fetch_sub(&control->inside, 1);
		while (atomic_load(&control->frozen))
			usleep(200);
		others = atomic_fetch_add(&control->inside, 1);
	}
	if (others != 0 && (i == finalize || atomic_load(&finalizing)))
		atomic_fetch_add(&control->violations, 1);
	if (i == finalize)
		atomic_store(&finalizing, 1);
	if (has_session && atomic_exchange(&busy[a & 0xFFFF], 1))
		atomic_fetch_add(&control->violations, 1);

	uint64_t mode = atomic_load(&control->f[i].mode);
	if (mode != pass && atomic_load(&control->f[i].count) >= 0 && atomic_fetch_sub(&control->f[i].count, 1) <= 0) {
		atomic_store(&control->f[i].count, 0);
		mode = pass;
	}
	uint64_t code = atomic_load(&control->f[i].code);
	if (mode == hang) {
		atomic_fetch_add(&control->hanging, 1);
		while (atomic_load(&control->f[i].mode) == hang)
			usleep(1000);
		atomic_fetch_sub(&control->hanging, 1);
	}
	ck rv = code;
	if (mode != fail)
		rv = real->f[i](a, b, c, d, e, g, h, j);
	if (mode == fail_after)
		rv = code;
	if (mode == corrupt && i == sign && rv == 0 && d != 0)
		((unsigned char *)d)[7] ^= 1;
	if (mode == set_flags && i == get_token_info && rv == 0)
		*(ck *)((unsigned char *)b + 96) |= code; // CK_TOKEN_INFO.flags

	if (has_session)
		atomic_store(&busy[a & 0xFFFF], 0);
	if (i == finalize)
		atomic_store(&finalizing, 0);
	atomic_fetch_sub(&control->inside, 1);
	return rv;
}

#define W(i) static ck w##i(ck a, ck b, ck c, ck d, ck e, ck g, ck h, ck j) { return through(i, a, b, c, d, e, g, h, j); }
W(0) W(1) W(2) W(4) W(5) W(6) W(7) W(8) W(9) W(10) W(11) W(12) W(13) W(14) W(15) W(18) W(19)
W(20) W(21) W(22) W(23) W(24) W(25) W(26) W(27) W(28) W(42) W(43) W(58) W(59) W(60)

ck C_GetFunctionList(struct list **out)
{
	void *lib = dlopen(getenv("FAULTY_REAL"), RTLD_NOW);
	int fd = open(getenv("FAULTY_CONTROL"), O_RDWR);
	if (lib == NULL || fd < 0)
		return 5;
	control = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	ck (*get)(struct list **) = (ck (*)(struct list **))dlsym(lib, "C_GetFunctionList");
	if (control == MAP_FAILED || get == NULL || get(&real) != 0)
		return 5;
	mine = *real;
#define S(i) mine.f[i] = w##i;
	S(0) S(1) S(2) S(4) S(5) S(6) S(7) S(8) S(9) S(10) S(11) S(12) S(13) S(14) S(15) S(18) S(19)
	S(20) S(21) S(22) S(23) S(24) S(25) S(26) S(27) S(28) S(42) S(43) S(58) S(59) S(60)
	*out = &mine;
	return 0;
}
