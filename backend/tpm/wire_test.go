package tpm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/scepkit/scepkit/backend"
)

// script answers each write with what comes next, interrupted as Go programs are.
type script struct {
	answers [][]byte
	pending bytes.Buffer
	signals int
	short   bool
}

func (s *script) Write(b []byte) (int, error) {
	if s.signals > 0 {
		s.signals--
		return 0, syscall.EINTR
	}
	if s.short && len(b) > 3 {
		return 3, io.ErrShortWrite
	}
	if len(s.answers) > 0 {
		s.pending.Write(s.answers[0])
		s.answers = s.answers[1:]
	}
	return len(b), nil
}

func (s *script) Read(b []byte) (int, error) {
	if s.signals++; s.signals%2 == 1 {
		return 0, syscall.EINTR
	}
	return s.pending.Read(b)
}

func TestRoundTrip(t *testing.T) {
	good := []byte{0x80, 1, 0, 0, 0, 12, 0, 0, 0, 0, 7, 7}
	for _, tt := range []struct {
		name   string
		answer []byte
		says   string // "": good
	}{
		{"good", good, ""},
		{"error of a TPM", []byte{0x80, 1, 0, 0, 0, 10, 0, 0, 1, 1}, ""},
		{"nothing", nil, "unexpected EOF"},
		{"cut in the header", good[:4], "after 4 bytes"},
		{"cut in the body", good[:11], "after 11 bytes"},
		{"two responses", append(bytes.Clone(good), good...), "12 bytes more"},
		{"one byte more", append(bytes.Clone(good), 1), "1 bytes more"},
		{"short size", []byte{0x80, 1, 0, 0, 0, 9, 0, 0, 0, 0}, "says that it has 9 bytes"},
		{"great size", []byte{0x80, 1, 0xff, 0, 0, 9, 0, 0, 0, 0}, "bytes"},
		{"not a TPM", []byte("HTTP/1.1 400 Bad Request\r\n"), "not of a TPM 2.0"},
		{"TPM 1.2", []byte{0, 0xc4, 0, 0, 0, 10, 0, 0, 0, 0x1e}, "not of a TPM 2.0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := roundTrip(&script{answers: [][]byte{tt.answer}, signals: 4}, []byte("command"))
			if tt.says == "" {
				if err != nil || !bytes.Equal(got, tt.answer) {
					t.Errorf("%x, %v", got, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%x, %v; should say %q", got, err, tt.says)
			}
		})
	}

	// Byte by byte, and in short writes.
	rw := struct {
		io.Reader
		io.Writer
	}{iotest.OneByteReader(bytes.NewReader(good)), &script{short: true}}
	if got, err := roundTrip(rw, []byte("command")); err != nil || !bytes.Equal(got, good) {
		t.Errorf("%x, %v", got, err)
	}
	rw.Reader = iotest.ErrReader(errors.New("cable"))
	if _, err := roundTrip(rw, nil); err == nil || !strings.Contains(err.Error(), "cable") {
		t.Error(err)
	}
	rw.Reader = stuck{}
	if _, err := roundTrip(rw, nil); !errors.Is(err, io.ErrNoProgress) {
		t.Error(err)
	}
}

// stuck reads nothing, and says so.
type stuck struct{}

func (stuck) Read([]byte) (int, error) { return 0, nil }

// liar answers commands with what a fuzzer thinks of, and the rest with nothing of use.
type liar struct {
	data    []byte
	pending bytes.Buffer
}

func (l *liar) Close() error { return nil }

func (l *liar) Read(b []byte) (int, error) { return l.pending.Read(b) }

func (l *liar) Write(b []byte) (int, error) {
	n := 0
	if len(l.data) > 0 {
		n = min(int(l.data[0]), len(l.data)-1)
		l.data = l.data[1:]
	}
	body := l.data[:n]
	l.data = l.data[n:]
	tag := byte(1)
	if binary.BigEndian.Uint16(b) == 0x8002 {
		tag = 2
	}
	l.pending.Write([]byte{0x80, tag, 0, 0, byte((10 + n) >> 8), byte(10 + n), 0, 0, 0, 0})
	l.pending.Write(body)
	return len(b), nil
}

// Whatever comes from the bus, there is an error and no panic.
func FuzzResponses(f *testing.F) {
	f.Add([]byte{25, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 9, 0, 0, 0, 0, 1, 0, 0, 0, 0})
	f.Add([]byte{})
	name := filepath.Join(f.TempDir(), "ca.tpm")
	k := sampleKey()
	k.emptyAuth = true
	if err := k.write(name, "", nil); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		tpm := must(Open(Config{Dial: func(context.Context) (io.ReadWriteCloser, error) { return &liar{data: data}, nil }}))
		defer tpm.Close()
		for _, n := range []Name{{File: name}, {Handle: 0x81010000}} {
			if _, err := tpm.OpenKey(t.Context(), n); err == nil {
				t.Errorf("%v opened", n)
			}
		}
		if _, err := tpm.Create(t.Context(), Name{File: name + "2", AuthSource: "env:HOME"}, backend.Spec{}); err == nil {
			t.Error("created")
		}
	})
}

// stubborn is a device that nothing interrupts, as one in the kernel.
type stubborn struct{ release chan struct{} }

func (s *stubborn) Write(b []byte) (int, error) { <-s.release; return 0, io.ErrClosedPipe }
func (s *stubborn) Read([]byte) (int, error)    { return 0, io.EOF }
func (s *stubborn) Close() error                { <-s.release; return nil }

func TestStubbornDevice(t *testing.T) {
	release := make(chan struct{})
	var dials atomic.Int32
	tpm := must(Open(Config{Timeout: 20 * time.Millisecond, Dial: func(context.Context) (io.ReadWriteCloser, error) {
		dials.Add(1)
		return &stubborn{release}, nil
	}}))
	for range 3 * maxStuck {
		start := time.Now()
		checkError(t, tpm.Check(t.Context()), backend.ErrUnavailable, "")
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("Check took %v", d)
		}
		tpm.turnDo(func() {}) // what was abandoned has ended
	}
	if n := tpm.stuck.Load(); n != maxStuck || dials.Load() > 2*maxStuck {
		t.Errorf("%d commands hang, %d connections", n, dials.Load())
	}
	start := time.Now()
	tpm.Close()
	if d := time.Since(start); d > 2*closeGrace {
		t.Errorf("Close took %v", d)
	}
	close(release)
	for deadline := time.Now().Add(5 * time.Second); tpm.stuck.Load() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("goroutines are left")
		}
	}
}
