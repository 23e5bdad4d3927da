// Enroll is a SCEP client for the command line: it makes a key, has a certificate issued for
// it, renews that, and goes on with a request that had to wait.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/scepclient"
)

const usage = `usage: enroll COMMAND -url URL [flags]

  caps     show what the server can do
  cacert   show the CA's certificates and their fingerprints
  enroll   make a key and get a certificate: -cn NAME -challenge-file FILE -out NAME
  renew    get a certificate in place of one that you have: -cert FILE -key FILE -out NAME
  poll     go on with a request that waits for approval: -out NAME

-out NAME stands for the files NAME.key and NAME.pem, and NAME.pending while a
request waits. The challenge may also be in the environment, as SCEP_CHALLENGE.
"enroll COMMAND -h" has the flags of a command.

Exit status: 0 done, 1 failed, 2 wrong usage, 3 still waiting for approval.
`

var (
	errUsage   = errors.New("usage")
	errPending = errors.New("pending")
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); {
	case err == nil, errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		os.Exit(2)
	case errors.Is(err, errPending):
		os.Exit(3)
	default:
		fmt.Fprintln(os.Stderr, "enroll:", err)
		os.Exit(1)
	}
}

// A command is one call of the program.
type command struct {
	client scepclient.Client
	stdout io.Writer
	stderr io.Writer

	fingerprints, ca           string
	legacy                     bool
	out                        files
	force                      bool
	retries                    int
	keyFile, keyType, certFile string
	challenge, challengeFile   string
	cn, organization           string
	dns, email, ip, uri        list
	asPKCSReq                  bool
}

// A list is a flag that can be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	c := &command{stdout: stdout, stderr: stderr}
	commands := map[string]func(context.Context) error{
		"caps": c.caps, "cacert": c.cacert, "enroll": c.enroll, "renew": c.renew, "poll": c.poll,
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
	return commands[args[0]](ctx)
}

func (c *command) parse(name string, args []string) error {
	f := flag.NewFlagSet("enroll "+name, flag.ContinueOnError)
	f.SetOutput(c.stderr)
	f.StringVar(&c.client.URL, "url", "", "`URL` of the SCEP server")
	f.StringVar(&c.client.Name, "name", "", "CA `identifier`, for servers that have several")
	f.BoolVar(&c.legacy, "legacy", false, "use Triple DES and SHA-1 with servers that offer nothing better")
	if name != "caps" {
		f.StringVar(&c.fingerprints, "fingerprint", "", "SHA-256 `fingerprint` of the CA's certificate; several with commas")
		f.StringVar(&c.ca, "ca", "", "PEM `file` with the CA's certificate, in place of a fingerprint")
		f.BoolVar(&c.client.InsecureAnyCA, "insecure-any-ca", false, "take any CA: whoever is on the way learns the challenge")
	}
	if name == "enroll" || name == "renew" || name == "poll" {
		f.StringVar(&c.out.name, "out", "", "write to `NAME`.key and NAME.pem")
		f.IntVar(&c.retries, "retries", 3, "poll so often while the request waits for approval, then exit with 3")
		f.DurationVar(&c.client.RetryDelay, "retry-delay", 10*time.Second, "`time` between polls")
	}
	if name == "enroll" || name == "renew" {
		f.BoolVar(&c.force, "force", false, "replace NAME.key and NAME.pem, once there is a new certificate; the old ones become NAME.key.old and NAME.pem.old")
		f.StringVar(&c.keyType, "key-type", "rsa2048", "make a key of this `kind`: rsa2048, rsa3072 or rsa4096")
		f.StringVar(&c.challenge, "challenge", "", "challenge `password`; others can see it in the list of processes: better -challenge-file or SCEP_CHALLENGE in the environment")
		f.StringVar(&c.challengeFile, "challenge-file", "", "`file` with the challenge password")
	}
	switch name {
	case "enroll":
		f.StringVar(&c.keyFile, "key", "", "use the key in this PEM `file`, and make none")
		f.StringVar(&c.cn, "cn", "", "common `name`")
		f.StringVar(&c.organization, "o", "", "`organization`")
		f.Var(&c.dns, "dns", "DNS `name`; can be given several times, as -email, -ip and -uri")
		f.Var(&c.email, "email", "mail `address`")
		f.Var(&c.ip, "ip", "IP `address`")
		f.Var(&c.uri, "uri", "`URI`")
	case "renew":
		f.StringVar(&c.certFile, "cert", "", "PEM `file` with the certificate to renew")
		f.StringVar(&c.keyFile, "key", "", "PEM `file` with its key")
		f.BoolVar(&c.asPKCSReq, "as-pkcsreq", false, "renew with PKCSReq where the server does not offer renewal")
	}
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err // the flags have been printed
		}
		return errUsage
	}
	wrong := func(text string) error {
		fmt.Fprintf(c.stderr, "enroll %s: %s; see enroll %s -h\n", name, text, name)
		return errUsage
	}
	needs := map[string][]string{"enroll": {"out"}, "renew": {"out", "cert", "key"}, "poll": {"out"}}[name]
	if name != "poll" {
		needs = append([]string{"url"}, needs...)
	}
	for _, flag := range needs {
		if f.Lookup(flag).Value.String() == "" {
			return wrong("-" + flag + " is missing")
		}
	}
	if f.NArg() > 0 {
		return wrong(fmt.Sprintf("%q is no flag", f.Arg(0)))
	}
	if (name == "enroll" || name == "renew") && c.fingerprints == "" && c.ca == "" && !c.client.InsecureAnyCA {
		return wrong("nothing tells the CA from another: give its -fingerprint (enroll cacert shows it, to be compared), or -ca")
	}
	if c.client.Retries = c.retries; c.retries == 0 {
		c.client.Retries = -1
	}
	if c.legacy {
		c.client.Legacy = scep.TripleDES | scep.SHA1
	}
	for _, s := range strings.Split(c.fingerprints, ",") {
		if s = strings.TrimSpace(s); s != "" {
			c.client.Fingerprints = append(c.client.Fingerprints, s)
		}
	}
	if c.ca != "" {
		certs, err := readCertificates(c.ca)
		if err != nil {
			return err
		}
		c.client.Roots = certs
	}
	return nil
}
