; A guest of 512 bytes that writes to memory without end: what a live move of it does not converge by itself.
;
; It writes one word to each page from 16 MiB to 24 MiB, over and over, as fast as it can, and never touches its
; disk. After each 256 passes it prints to the first serial port, as counter.asm does:
;   boot 1 count <passes>

        bits 16
        org 0x7c00

COM1    equ 0x3f8
FIRST   equ 16 << 20
LAST    equ 24 << 20

start:  jmp     0:main
main:   cli
        xor     ax, ax
        mov     ds, ax
        mov     ss, ax
        mov     sp, 0x7c00
        mov     ax, 0x2401      ; A20: memory above 1 MiB
        int     0x15
        lgdt    [table]
        mov     eax, cr0
        or      al, 1
        mov     cr0, eax
        jmp     8:flat

        bits 32
flat:   mov     ax, 16
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     esp, 0x7c00
        xor     ebp, ebp

pass:   mov     edi, FIRST
page:   inc     dword [edi]
        add     edi, 4096
        cmp     edi, LAST
        jb      page
        inc     ebp
        test    ebp, 255
        jnz     pass
        mov     esi, text
.next:  lodsb
        test    al, al
        jz      .number
        call    char
        jmp     .next
.number:
        mov     eax, ebp
        mov     ebx, 10
        xor     ecx, ecx
.split: xor     edx, edx
        div     ebx
        push    edx
        inc     ecx
        test    eax, eax
        jnz     .split
.digit: pop     eax
        add     al, '0'
        call    char
        loop    .digit
        mov     al, 13
        call    char
        mov     al, 10
        call    char
        jmp     pass

char:   push    eax
        mov     dx, COM1 + 5
.full:  in      al, dx
        test    al, 0x20
        jz      .full
        pop     eax
        mov     dx, COM1
        out     dx, al
        ret

text:   db      "boot 1 count ", 0
        align   8
gdt:    dq      0
        dq      0x00cf9a000000ffff
        dq      0x00cf92000000ffff
table:  dw      $ - gdt - 1
        dd      gdt

        times   510 - ($ - $$) db 0
        dw      0xaa55
