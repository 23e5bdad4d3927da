package hsmtest

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
)

// A verdict is a test that writes down how it ended.
type verdict struct {
	testing.TB
	got string
}

func (v *verdict) Helper() {}

func (v *verdict) Skip(args ...any) { v.end("skip: " + fmt.Sprint(args...)) }

func (v *verdict) Skipf(format string, args ...any) { v.end("skip: " + fmt.Sprintf(format, args...)) }

func (v *verdict) Fatalf(format string, args ...any) { v.end("fail: " + fmt.Sprintf(format, args...)) }

func (v *verdict) end(how string) {
	v.got = how
	runtime.Goexit()
}

// end says how a test ends that runs f.
func end(t *testing.T, f func(testing.TB)) string {
	v := &verdict{TB: t}
	done := make(chan bool)
	go func() {
		defer close(done)
		f(v)
	}()
	<-done
	return v.got
}

func TestPolicy(t *testing.T) {
	for _, c := range []struct{ mode, ci, have, lack string }{
		{"", "", "", "skip: hsmtest: tool is not installed (Debian package pkg)"},
		{"", "true", "", "fail: hsmtest: tool is required and not installed (Debian package pkg)"},
		{"skip", "true", "", "skip: "},
		{"require", "", "", "fail: "},
		{"off", "true", "skip: hsmtest: HSMTEST is off", "skip: "},
		{"on", "", `fail: hsmtest: HSMTEST is "on", want require, skip or off`, "fail: "},
	} {
		t.Setenv("HSMTEST", c.mode)
		t.Setenv("CI", c.ci)
		have := end(t, policy)
		lack := end(t, func(t testing.TB) {
			policy(t)
			library(t, "tool", "pkg", "/nonexistent/*.so")
		})
		if have != c.have || !strings.HasPrefix(lack, c.lack) {
			t.Errorf("HSMTEST=%s CI=%s: with the tool %q, without %q", c.mode, c.ci, have, lack)
		}
	}
}

// The variable is there for all tokens of the process, and put back after the last.
func TestSoftHSMEnvironment(t *testing.T) {
	t.Setenv(softhsmVar, "mine")
	var conf string
	t.Run("two", func(t *testing.T) {
		a, b := SoftHSM(t), SoftHSM(t)
		conf = os.Getenv(softhsmVar)
		if a.Env()[0] != softhsmVar+"="+conf || b.Env()[0] != a.Env()[0] {
			t.Errorf("the variable is %s, the tokens want %v and %v", conf, a.Env(), b.Env())
		}
	})
	if got := os.Getenv(softhsmVar); got != "mine" {
		t.Errorf("after the tokens the variable is %q", got)
	}
	if _, err := os.Stat(conf); !os.IsNotExist(err) {
		t.Errorf("the folder is still there: %v", err)
	}
}
