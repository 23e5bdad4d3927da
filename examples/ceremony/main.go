// Ceremony makes the keys of a CA, where they are to stay, and their certificates, and writes down
// for the auditor what was done. It never overwrites a key, a certificate or a request, unless it
// is told to replace a certificate.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/file"
	"github.com/scepkit/scepkit/backend/pkcs11"
	"github.com/scepkit/scepkit/backend/tpm"
)

const usage = `usage: ceremony COMMAND -key URI [flags]

  create     make a key: [-type KIND] [-decrypt]
  self-sign  make it the key of a root: -cn NAME [-o NAME] [-c COUNTRY] [-years N]
  csr        write a request for the CA above: -cn NAME [-o NAME] [-c COUNTRY] -out FILE
  import     store what that CA issued: [-replace] FILE...
  ra         make or renew the key beside a CA that opens requests: -ca URI [-type KIND] [-years N]
  check      show a key, its protection and certificates, and try it

URI is one of

  pkcs11:token=TOKEN;object=KEY?module-path=FILE&pin-source=file:/PATH
  tpm:FILE?chain=FILE
  file:FILE?chain=FILE

with {n} in the name of the key, and of the chain, for ra. Without a pin-source the
PIN is asked for. -transcript FILE appends what was done, one line of JSON for each
command. "ceremony COMMAND -h" has the flags of a command.

Exit status: 0 done, 1 failed or not in order, 2 wrong usage.
`

var errUsage = errors.New("usage")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); {
	case err == nil, errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "ceremony:", err)
		os.Exit(1)
	}
}

// A command is one call of the program.
type command struct {
	stdout, stderr io.Writer
	drivers        []backend.Driver
	record         record

	key, ca, out     string
	kind             string
	keyType          backend.KeyType
	decrypt, replace bool
	cn, o, country   string
	years            int
	transcript       string
	files            []string
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	c := &command{stdout: stdout, stderr: stderr}
	quiet := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	asker := &asker{stderr: stderr}
	c.drivers = []backend.Driver{file.Driver{}, pkcs11.Driver{PIN: asker.ask, Log: quiet}, &tpm.Driver{}}
	commands := map[string]func(context.Context) error{
		"create": c.create, "self-sign": c.selfSign, "csr": c.csr, "import": c.store, "ra": c.makeRA, "check": c.check,
	}
	if len(args) == 1 && (args[0] == "help" || args[0] == "-h" || args[0] == "-help" || args[0] == "--help") {
		fmt.Fprint(stdout, usage)
		return nil
	}
	if len(args) == 0 || commands[args[0]] == nil {
		fmt.Fprint(stderr, usage)
		return errUsage
	}
	if err := c.parse(args[0], args[1:]); err != nil {
		return err
	}
	c.record.begin(args[0], args[1:])
	transcript, err := openTranscript(c.transcript)
	if err != nil {
		return err
	}
	err = commands[args[0]](ctx)
	if written := transcript.end(&c.record, err); written != nil {
		err = errors.Join(err, fmt.Errorf("what was done is not in the transcript: %w", written))
	}
	return err
}

func (c *command) parse(name string, args []string) error {
	f := flag.NewFlagSet("ceremony "+name, flag.ContinueOnError)
	f.SetOutput(c.stderr)
	needs := []string{"key"}
	f.StringVar(&c.key, "key", "", "`URI` of the key")
	f.StringVar(&c.transcript, "transcript", "", "append what was done to this `file`")
	kind := func() {
		f.StringVar(&c.kind, "type", "rsa2048", "`kind` of key: rsa2048, rsa3072, rsa4096, p256, p384 or, in a file, ed25519; RSA for an RA")
	}
	subject := func() {
		needs = append(needs, "cn")
		f.StringVar(&c.cn, "cn", "", "common `name` of the CA")
		f.StringVar(&c.o, "o", "", "`name` of the organization")
		f.StringVar(&c.country, "c", "", "`country`, two letters")
	}
	switch name {
	case "create":
		kind()
		f.BoolVar(&c.decrypt, "decrypt", false, "let an RSA key decrypt as well as sign, for a CA without an RA")
	case "self-sign":
		subject()
		f.IntVar(&c.years, "years", 10, "the certificate is valid for so many `years` of 365 days")
	case "csr":
		subject()
		needs = append(needs, "out")
		f.StringVar(&c.out, "out", "", "write the request to this `file`")
	case "import":
		f.BoolVar(&c.replace, "replace", false, "put these certificates in the place of others")
	case "ra":
		needs = append(needs, "ca")
		kind()
		f.StringVar(&c.ca, "ca", "", "`URI` of the CA's key")
		f.IntVar(&c.years, "years", 1, "the certificate is valid for so many `years` of 365 days, but not beyond the CA's")
	}
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err // the flags have been printed
		}
		return errUsage
	}
	wrong := func(text string) error {
		fmt.Fprintf(c.stderr, "ceremony %s: %s; see ceremony %s -h\n", name, text, name)
		return errUsage
	}
	for _, flag := range needs {
		if f.Lookup(flag).Value.String() == "" {
			return wrong("-" + flag + " is missing")
		}
	}
	for _, uri := range []string{c.key, c.ca} {
		if err := check(uri); err != nil {
			return wrong(err.Error())
		}
	}
	c.files = f.Args()
	switch {
	case name == "import" && len(c.files) == 0:
		return wrong("name the files with the certificates, the key's own first")
	case name != "import" && len(c.files) > 0:
		return wrong("what follows the flags is too much")
	case name != "ra" && strings.Contains(c.key, "{n}"):
		return wrong("{n} is for ra; name one key")
	case name == "ra" && !strings.Contains(c.key, "{n}"):
		return wrong("-key has no {n} where the number of the key goes")
	case f.Lookup("years") != nil && (c.years < 1 || c.years > 100):
		return wrong("-years is from 1 to 100")
	case c.country != "" && len(c.country) != 2:
		return wrong("-c has two letters, as CH")
	}
	if c.kind != "" {
		var err error
		if c.keyType, err = backend.ParseKeyType(c.kind); err != nil {
			return wrong(err.Error())
		}
		if ecdsa := strings.HasPrefix(c.kind, "p"); ecdsa && (c.decrypt || name == "ra") {
			return wrong("a " + c.kind + " key cannot decrypt; use RSA")
		}
	}
	return nil
}

// check reports what is wrong with the URI of a key, before it gets into the transcript. The text
// does not have a PIN in it that somebody put where the name of a file belongs.
func check(uri string) error {
	if uri == "" {
		return nil
	}
	u, err := backend.ParseURI(uri)
	if err != nil {
		return err
	}
	for name, value := range u.Query {
		if !strings.HasSuffix(name, "-source") {
			continue
		}
		kind, _, ok := strings.Cut(value, ":")
		if !strings.HasPrefix(value, "/") && !(ok && (kind == "file" || kind == "env" || kind == "credential")) {
			return fmt.Errorf("%s is file:/PATH, env:NAME or credential:NAME; if this was the PIN itself, change it", name)
		}
	}
	return nil
}
