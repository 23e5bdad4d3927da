//go:build !cgo

package exampletest

const cgo = false
