package hsmtest

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"
)

// An Injector is a [Token] behind a module that passes calls on and misbehaves as told. Its
// methods may be called concurrently, at any time, whichever process has loaded the module; they
// work on every process that has. They panic if there is no function fn.
//
// A caller that asks for the length of a result first makes two calls of C_Sign or C_Decrypt.
type Injector struct {
	*Token

	t   testing.TB
	ctl *control
	mu  sync.Mutex // held to look for an entry of ctl.mechanism or ctl.attribute, and set it
}

// Fault puts an interposer of its own before the module of tok, which still works beside it.
func Fault(t testing.TB, tok *Token) *Injector {
	t.Helper()
	policy(t)
	k := *tok
	inj := &Injector{Token: &k, t: t}
	k.Module, inj.ctl = interpose(t, tok.Module, "")
	return inj
}

// forever is more times than anybody counts.
const forever = ^uint64(0)

// control is mapped by the interposer too, which has the same layout.
type control struct {
	drops, overlaps, flip, garble, tokenFlags atomic.Uint64
	_                                         [3]uint64
	mechanism                                 [16][2]atomic.Uint64 // type + 1, flags taken away
	attribute                                 [16][2]atomic.Uint64 // type + 1, value + 1
	function                                  [68]struct {
		calls, running, max, hang, delay, rule atomic.Uint64
		_                                      [2]uint64
	}
}

//go:embed interpose/interpose.c
var interposeSource []byte

// interposer returns the compiled module. It is made once in a process, which can hold only one
// build of the embedded source.
var interposer = sync.OnceValues(func() ([]byte, error) {
	cc := os.Getenv("CC")
	if cc == "" {
		cc = "cc"
	}
	if _, err := exec.LookPath(cc); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "hsmtest")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "interpose.so")
	cmd := exec.Command(cc, "-std=gnu17", "-O2", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden",
		"-x", "c", "-o", file, "-", "-ldl")
	cmd.Stdin = bytes.NewReader(interposeSource)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", cc, err, out)
	}
	return os.ReadFile(file)
})

// functions maps the name of each function to its place in the function list.
var functions = sync.OnceValue(func() map[string]int {
	m := make(map[string]int)
	for i, f := range regexp.MustCompile(`X\((C_\w+), \d\)`).FindAllSubmatch(interposeSource, -1) {
		m[string(f[1])] = i
	}
	return m
})

// interpose makes an interposer before a module, which it initialises with a string if any.
func interpose(t testing.TB, module, initString string) (string, *control) {
	t.Helper()
	lib, err := interposer()
	if errors.Is(err, exec.ErrNotFound) {
		missing(t, "a C compiler", "gcc")
	}
	if err != nil {
		t.Fatalf("hsmtest: %v", err)
	}
	path := write(t, filepath.Join(t.TempDir(), "interpose.so"), lib, 0o755)
	write(t, path+".conf", []byte(module+"\n"+initString), 0o600)
	size := int(unsafe.Sizeof(control{}))
	write(t, path+".ctl", make([]byte, size), 0o600)
	f, err := os.OpenFile(path+".ctl", os.O_RDWR, 0)
	if err != nil {
		t.Fatalf("hsmtest: %v", err)
	}
	defer f.Close()
	// Never unmapped: a method called late must not crash the process.
	mem, err := mapFile(f, size)
	if err != nil {
		t.Fatalf("hsmtest: %v", err)
	}
	return path, (*control)(unsafe.Pointer(&mem[0]))
}

// index panics if there is no function fn.
func index(fn string) int {
	i, ok := functions()[fn]
	if !ok {
		panic(fmt.Sprintf("hsmtest: PKCS#11 has no function %q", fn))
	}
	return i
}

// Fail lets skip calls of fn pass, then answers n calls with rv and does not make them; n < 0 is
// for ever, n = 0 undoes. It replaces an earlier Fail or FailAfter of fn.
func (j *Injector) Fail(fn string, rv uint, n, skip int) { j.rule(fn, rv, n, skip, 0) }

// FailAfter is like [Injector.Fail], but the calls are made and only their answer is replaced.
func (j *Injector) FailAfter(fn string, rv uint, n, skip int) { j.rule(fn, rv, n, skip, 1) }

func (j *Injector) rule(fn string, rv uint, n, skip int, after uint64) {
	if n < 0 {
		n = 0x7fff
	} else if n >= 0x7fff || skip < 0 || skip > 0xffff || uint64(rv) > 0xffffffff {
		panic(fmt.Sprintf("hsmtest: no rule for %s can hold rv %#x, n %d, skip %d", fn, rv, n, skip))
	}
	j.ctl.function[index(fn)].rule.Store(after<<63 | uint64(skip)<<47 | uint64(n)<<32 | uint64(rv))
}

// Poison answers the next n calls of C_Sign with CKR_FUNCTION_FAILED and does not make them,
// which leaves the operation of their sessions active: the next C_SignInit there fails too.
func (j *Injector) Poison(n int) { j.Fail("C_Sign", 0x6, n, 0) }

// Delay has each call of fn wait for d before it is made.
func (j *Injector) Delay(fn string, d time.Duration) {
	j.ctl.function[index(fn)].delay.Store(uint64(max(d, 0)))
}

// Hang has each call of fn wait before it is made, until release is called or the test ends.
// [Injector.Running] tells when a call has arrived.
func (j *Injector) Hang(fn string) (release func()) {
	hang := &j.ctl.function[index(fn)].hang
	hang.Add(1)
	release = sync.OnceFunc(func() { hang.Add(^uint64(0)) })
	j.t.Cleanup(release) // before the cleanups, registered earlier, that wait for the call
	return release
}

// Drop closes all sessions, and so logs out, behind the caller's back. Calls being made end
// first; every call that starts after Drop finds its session gone.
func (j *Injector) Drop() { j.ctl.drops.Add(1) }

// FlipSignature flips a bit of the next n signatures; n < 0 is for ever.
func (j *Injector) FlipSignature(n int) { j.ctl.flip.Store(count(n)) }

// Garble has the next n decryptions (C_Decrypt) succeed with random bytes of random length,
// whatever they were given, as NSS does where the padding is bad; n < 0 is for ever.
func (j *Injector) Garble(n int) { j.ctl.garble.Store(count(n)) }

func count(n int) uint64 {
	if n < 0 {
		return forever
	}
	return uint64(n)
}

// TokenFlags adds flags, such as CKF_USER_PIN_FINAL_TRY, to what C_GetTokenInfo says. The next
// call replaces them.
func (j *Injector) TokenFlags(flags uint) { j.ctl.tokenFlags.Store(uint64(flags)) }

// DenyMechanism takes uses, such as CKF_DECRYPT, away from a mechanism: C_GetMechanismInfo does
// not name them and their Init functions answer CKR_MECHANISM_INVALID. All flags, ^uint(0), hide
// the mechanism; none gives it back.
func (j *Injector) DenyMechanism(mechanism, flags uint) {
	f := uint64(flags)
	if flags == ^uint(0) {
		f = forever
	}
	j.set(&j.ctl.mechanism, mechanism, f)
}

// Attribute has C_GetAttributeValue report a Boolean attribute as value wherever the token
// reports it at all. The token still acts on its own value.
func (j *Injector) Attribute(attribute uint, value bool) {
	v := uint64(1)
	if value {
		v = 2
	}
	j.set(&j.ctl.attribute, attribute, v)
}

func (j *Injector) set(table *[16][2]atomic.Uint64, key uint, value uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for i := range table {
		if k := table[i][0].Load(); k == 0 || k == uint64(key)+1 {
			table[i][1].Store(value)
			table[i][0].Store(uint64(key) + 1)
			return
		}
	}
	panic("hsmtest: an Injector changes 16 mechanisms and 16 attributes, no more")
}

// Calls returns how often fn has been called, made or not.
func (j *Injector) Calls(fn string) int { return int(j.ctl.function[index(fn)].calls.Load()) }

// Running returns how many calls of fn have not returned, hung ones included.
func (j *Injector) Running(fn string) int { return int(j.ctl.function[index(fn)].running.Load()) }

// MaxConcurrent returns the most calls of fn that were running at once.
func (j *Injector) MaxConcurrent(fn string) int { return int(j.ctl.function[index(fn)].max.Load()) }

// Overlaps returns how often C_Finalize or C_CloseAllSessions ran beside another call, of which
// a real module may crash. The interposer itself keeps them apart.
func (j *Injector) Overlaps() int { return int(j.ctl.overlaps.Load()) }
