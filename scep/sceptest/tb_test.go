package sceptest_test

import (
	"context"
	"fmt"
	"io"
	"testing"
)

// A tb stands in for the *testing.T that examples do not have, and takes note of errors in tests
// of what is to find them.
type tb struct {
	testing.TB
	errors   []string
	cleanups []func()
}

func newT() *tb { return &tb{} }

func (t *tb) Helper()                  {}
func (t *tb) Name() string             { return "Example" }
func (t *tb) Context() context.Context { return context.Background() }
func (t *tb) Output() io.Writer        { return io.Discard }
func (t *tb) Cleanup(f func())         { t.cleanups = append(t.cleanups, f) }

func (t *tb) Error(args ...any)                 { t.errors = append(t.errors, fmt.Sprint(args...)) }
func (t *tb) Errorf(format string, args ...any) { t.Error(fmt.Sprintf(format, args...)) }
func (t *tb) Fatal(args ...any)                 { panic(fmt.Sprint(args...)) }
func (t *tb) Fatalf(format string, args ...any) { t.Fatal(fmt.Sprintf(format, args...)) }

// end cleans up, and prints errors, which no Output expects.
func (t *tb) end() {
	for i := len(t.cleanups) - 1; i >= 0; i-- {
		t.cleanups[i]()
	}
	for _, e := range t.errors {
		fmt.Println(e)
	}
}
